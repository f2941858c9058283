"""An adapter on the Hugging Face hub: a repository of its files, whose README.md is its card.

`huggingface_hub` knows where the hub is (`HF_ENDPOINT`), who asks (`hf auth login`), and how a commit is made. What is fetched
is listed first, with the sizes and digests that the hub has, and comes through `inlay.hub.transfer`.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from inlay.errors import CompatibilityError, ConfigError, FormatError, TransferError, explain, few
from inlay.hub import files, manifest, transfer
from inlay.hub.manifest import Entry
from inlay.io import json_files

_REFERENCE = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)

MAIN = "main"
"""The branch that is meant where none is named."""


class Reference(NamedTuple):
    """What an adapter on the hub is called."""

    name: str
    version: str
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        return f"hf://{self.name}" + (f"@{self.version}" if self.version != MAIN else "")


def parse(text: str) -> Reference:
    """`hf://OWNER/NAME`, with `@REVISION` behind it where it is not main.

    **Raises:**

    - `ConfigError`: it is not of that form.
    """
    match = _REFERENCE.fullmatch(text)
    if not match or ".." in text:
        wrong, do = "this names no adapter on the hub", "hf://OWNER/NAME, or hf://OWNER/NAME@REVISION"
        raise ConfigError(explain(wrong, found=repr(text), do=do))
    return Reference(match["name"], match["revision"] or MAIN)


class Repository:
    """The repository on the hub that a reference names."""

    def __init__(self, reference: Reference):
        import huggingface_hub
        from huggingface_hub.utils import build_hf_headers

        if huggingface_hub.constants.is_offline_mode():
            do = "HF_HUB_OFFLINE=0"
            raise TransferError(explain("the hub is not asked: HF_HUB_OFFLINE is set", found=str(reference), do=do))
        self.reference = reference
        self.channel = transfer.Channel(
            huggingface_hub.constants.ENDPOINT, lambda: build_hf_headers(library_name="inlay")
        )

    def listing(self) -> tuple[str, list[Entry]]:
        """(The commit, its files), none of which has been fetched.

        **Raises:**

        - `UnknownNameError`, `TransferError`: see `inlay.hub.transfer.Channel.read`.
        - `FormatError`: the hub's answer is none, or these can't be the files of an adapter.
        """
        name, revision = self.reference.name, quote(self.reference.version, safe="")
        content = self.channel.read(f"/api/models/{name}/revision/{revision}?blobs=true")
        try:
            said: Any = json_files.parse(content)
            commit = str(said["sha"])
            entries = [self._entry(commit, file) for file in said["siblings"]]
        except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
            found = f"{self.reference}: {type(error).__name__}: {str(error)[:200]}"
            raise FormatError(explain("this is no list of files", found=found, do="try again later")) from None
        if not re.fullmatch("[0-9a-f]{40}", commit):
            raise FormatError(explain("this is no list of files", found=f"{self.reference}: commit {commit[:100]!r}"))
        return commit, manifest.checked(entries, str(self.reference))

    def push(self, directory: Path, *, private: bool = False, replace: bool = False) -> str:
        """Put the files of a directory there, as one commit: its name. Large files that the hub has are not sent again.

        **Arguments:**

        - `private`: a repository that is made for it is seen by its owner alone.
        - `replace`: files that it has, and the directory has not, are removed.

        **Raises:**

        - `CompatibilityError`: it has other files.
        - `TransferError`: the hub refuses, or the transfer broke.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

        api, (name, revision) = HfApi(library_name="inlay"), self.reference
        names = files.listed(directory)
        try:
            api.create_repo(name, private=private, exist_ok=True)
            there = [path for path in api.list_repo_files(name, revision=revision) if not path.startswith(".")]
            others = sorted({*there} - {*names})
            if others and not replace:
                found, do = (
                    [f"{self.reference} has {', '.join(few(others))}"],
                    "--replace removes them; or another name",
                )
                raise CompatibilityError(explain("there are other files in this repository", found=found, do=do))
            added = [CommitOperationAdd(path_in_repo=path, path_or_fileobj=str(directory / path)) for path in names]
            gone = [CommitOperationDelete(path_in_repo=path) for path in others]
            what = f"{directory.name[:60]}, by inlay push"
            return str(api.create_commit(name, [*added, *gone], commit_message=what, revision=revision).oid)
        except CompatibilityError:
            raise
        except Exception as error:  # the library raises what its parts do, RuntimeError among it
            reason = " ".join(f"{error} {error.__cause__ or ''}".split())[:300]
            do = "hf auth login, with an account that may; the same command goes on with what is there"
            raise TransferError(
                explain("the hub has not taken it", found=f"{self.reference}: {reason}", do=do)
            ) from None

    def _entry(self, commit: str, file: Any) -> Entry:
        name, lfs = file["rfilename"], file.get("lfs")
        digest = f"sha256:{lfs['sha256']}" if lfs else f"git:{file.get('blobId')}"
        url = f"/{self.reference.name}/resolve/{commit}/{quote(str(name))}"
        return Entry(name, lfs["size"] if lfs else file.get("size"), digest, url)
