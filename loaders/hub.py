"""Models of the Hugging Face hub: the files of one repository that we read, in the hub's own cache. Knows no formats.

The library asks the hub what is new, takes from its cache what is there, and lives from the cache without a network.
"""

import io
from pathlib import Path
from typing import Any

from engine.refusal import UnknownModel
from loaders.progress import OnProgress, Progress

# Not every repository is tidy: other formats of the same weights, pictures and code stay where they are.
WANTED = ["*.json", "model*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]


def fetch_snapshot(repository: str, on_progress: OnProgress) -> Path:
    """The directory of a hub id's files, fetched as far as they are not here."""
    import huggingface_hub  # here, because its import takes as long as loading a small model
    from huggingface_hub import errors

    http_error: type[Exception] = vars(errors)["HTTPError"]  # that of the HTTP library which is behind it today

    try:
        directory = huggingface_hub.snapshot_download(
            repository, allow_patterns=WANTED, tqdm_class=reporting_bar(f"fetching {repository}", on_progress)
        )
    except errors.GatedRepoError:
        raise UnknownModel(
            f"{repository} is gated: accept its terms on the hub, and log in with `hf auth login`"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UnknownModel(f"{repository} is no directory here and no repository on the hub") from None
    except errors.LocalEntryNotFoundError:
        raise UnknownModel(f"{repository} is not complete in the hub's cache, and the hub cannot be reached") from None
    except (OSError, http_error) as trouble:
        cause = str(trouble).strip().partition("\n")[0] or type(trouble).__name__
        raise UnknownModel(f"{repository} could not be fetched from the hub: {cause}") from None
    return Path(directory)


def reporting_bar(stage: str, on_progress: OnProgress) -> type[Any]:
    """A progress bar as the hub's library wants one, that draws nothing and reports bytes."""
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    furthest = 0  # the library counts bytes that came and bytes that are in place in two bars

    class ReportingBar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> bool:
            nonlocal furthest
            if self.unit == "B":
                furthest = max(furthest, int(self.n))
                on_progress(Progress(stage, furthest, int(self.total) if self.total else None))
            return True

    return ReportingBar
