"""What a process takes of the host's memory beyond its guest's RAM (Documentation/filesystems/proc.rst, `smaps`).

The proportional set size (PSS) counts a page shared with other processes by its share."""

import re

# `7f00-7f01 rw-p offset device inode   path`
HEADER = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) *(.*)")


def beyond_guest(pid, guest_bytes):
    """(anonymous, file) bytes of PSS of a running process, its guest's RAM left out."""
    with open(f"/proc/{pid}/smaps") as file:
        return measure(file.read(), guest_bytes)


def measure(smaps, guest_bytes):
    """The same from the text of `smaps`."""
    mappings = list(_mappings(smaps))
    rest = [mapping for mapping in mappings if mapping not in _guest_ram(mappings, guest_bytes)]
    anonymous = sum(mapping["anonymous"] for mapping in rest)
    return anonymous, sum(mapping["pss"] for mapping in rest) - anonymous


def _guest_ram(mappings, guest_bytes):
    """The mappings that hold the guest's RAM: the largest with anything in it, and its neighbours or the next largest
    until all of it is found. The kernel may have joined one with a neighbour, or split it by how its parts are used."""
    # Address space that is only reserved holds nothing.
    left = [mapping for mapping in mappings if mapping["pss"] > 0]
    found, missing = [], guest_bytes
    while missing > 0 and left:
        edges = {edge for mapping in found for edge in (mapping["start"], mapping["start"] + mapping["size"])}
        beside = [one for one in left if one["size"] <= missing and edges & {one["start"], one["start"] + one["size"]}]
        chosen = max(beside or left, key=lambda mapping: mapping["size"])
        # The rest, if any, is nowhere as one piece that stands out: it was never touched.
        if not beside and chosen["size"] < guest_bytes // 16:
            break
        found.append(chosen)
        left.remove(chosen)
        missing -= chosen["size"]
    return found


def _mappings(smaps):
    current = None
    for line in smaps.splitlines():
        header = HEADER.match(line)
        if header:
            if current:
                yield current
            start, end = int(header[1], 16), int(header[2], 16)
            current = {"start": start, "size": end - start, "pss": 0, "anonymous": 0}
            continue
        name, _, value = line.partition(":")
        if current and name == "Pss":
            current["pss"] = int(value.split()[0]) << 10
        elif current and name == "Anonymous":
            # Counted whole where it is not split by process, but no monitor shares anonymous pages with another.
            current["anonymous"] = min(int(value.split()[0]) << 10, current["pss"])
    if current:
        yield current
