"""engine turns tokens into tokens: model, caches, scheduler, sampling, kernels. No Ray, no files, no clock."""
