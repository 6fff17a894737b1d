"""loaders turns names and files into values: models, adapters, tokenizers. Trusts no file; knows no Ray."""
