"""The names of what lies in a storage directory: the client's, ours, and those that commits make for a while."""

from __future__ import annotations

import re

METADATA_NAME = "metadata.json"
LOCK_NAME = ".prune_size.lock"

TMP_NAME = ".metadata.json.tmp"
PREV_NAME = ".metadata.json.prev"
ASIDE_PREFIX = ".metadata.json.torn-"
# What commits make beside metadata.json. Others make files there, too: an editor its .swp, for one.
is_commit_file = re.compile(r"\.metadata\.json\.(?:tmp|prev(?:\.\d)?|torn-.*)", re.DOTALL).fullmatch

# Each salvage that is itself raced keeps one more old file reachable. More than a few in a row cannot be
# chance; then the files wait for the next run.
MOST_PREVIOUS = 8

GUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
# The client writes lower-case extensions; with anything else an entry could not name its blob for certain.
FORMAT = r"[a-z0-9][a-z0-9_+-]{0,31}"

is_guid = re.compile(GUID).fullmatch
is_format = re.compile(FORMAT).fullmatch
# Wider than what a session's blob may be called: the blob of a corrupt entry takes up space, too.
is_blob_name = re.compile(rf"{GUID}\.[A-Za-z0-9][A-Za-z0-9._+-]{{0,63}}").fullmatch
GUID_LENGTH = 36


def previous_names(most: int = MOST_PREVIOUS) -> list[str]:
    return [PREV_NAME] + [f"{PREV_NAME}.{number}" for number in range(1, most)]
