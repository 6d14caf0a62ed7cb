#!/usr/bin/env python3
"""Check a release of an scf foundry. One file, Python's standard library only, no network.

    python verify_release.py DIR [--key FILE]

DIR is a release folder (week-YYYY-MM-DD). FILE is the foundry's public key in PEM, obtained from
somewhere you trust. Without it the key inside the release is used: that shows that the release is
whole and consistent, not who made it.

Exit code 0: everything fits. 5: something does not; the file is named. 2: wrong arguments.

What is checked, so that nothing has to be believed:
  1. RELEASE.dsse.json is signed by the key (Ed25519 over a DSSE envelope), or by one that replaced
     it in statements that each older key signed; and RELEASE.json is exactly what was signed.
  2. Every file has the SHA-256 and size that were signed; none is missing, none is there beside.
  3. The signed statement about the training run (proof.json) is about these weights, this plan and
     these metrics, and stands in the foundry's audit log (RFC 6962 inclusion proof, signed head).
  4. Every shard of the plan has a manifest signed by the vault's key, and the list of fossils leads
     to each shard's Merkle root and to the plan's.
  5. If the release before it lies beside it, it is the one that this release names.
A release without weights (nothing new was promoted that week) names the earlier release that has
them; 3. and 4. then hold for what is here, and that release is compared if it lies beside this one.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence  # noqa: UP035 - 3.9 runs it

RELEASE_SCHEMA = "scf.release/1"
RELEASE_TYPE = "application/vnd.scf.release+json"
STATEMENT_TYPE = "application/vnd.in-toto+json"
MANIFEST_TYPE = "application/vnd.scf.shard-manifest+json"
ROTATION_TYPE = "application/vnd.scf.key-rotation+json"
RELEASE, ENVELOPE = "RELEASE.json", "RELEASE.dsse.json"
FOUNDRY, ROTATIONS = "keys/foundry.pub", "keys/rotations.json"
NOT_IN_SUMS = (RELEASE, ENVELOPE, "SHA256SUMS")

EXIT_OK, EXIT_FAILED = 0, 5


class Problem(NamedTuple):
    """Something that does not fit: in which file, and what."""

    file: str
    what: str


class Unfit(Exception):
    """Raised where a file turns out not to fit."""


class Verification(NamedTuple):
    """The result.

    Attributes:
        ok: Whether everything fits.
        name: The folder's name.
        problems: What does not fit; empty if ok.
        facts: What the release says of itself (the signed RELEASE.json), {} if it cannot be read.
        key_id: SHA-256 of the public key that was used, "" if there was none.
        pinned: Whether that key was given, rather than taken from the release.
        followed: Whether the key that was given is an older one that was replaced by it.
        previous: `none`, `fits`, `absent` (not beside it) or `differs`.
        carrier: The same of the release that has the weights; `none` where this one has them.
        ignored: Files that macOS leaves on drives, not part of the release and not looked at.
    """

    ok: bool
    name: str
    problems: list[Problem]
    facts: dict[str, Any]
    key_id: str
    pinned: bool
    followed: bool
    previous: str
    carrier: str
    ignored: list[str]

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "ok": self.ok,
            "release": self.name,
            "problems": [problem._asdict() for problem in self.problems],
            "key_id": self.key_id,
            "pinned": self.pinned,
            "followed": self.followed,
            "previous": self.previous,
            "carrier": self.carrier,
            "ignored": self.ignored,
            "release_json": self.facts,
        }

    def text(self) -> str:
        """For people."""
        return report_text(self)


def verify_release(folder: Path, key_pem: bytes | None = None) -> Verification:
    """Check the release in `folder`; `key_pem` pins the foundry's public key."""
    folder = Path(os.path.realpath(folder))  # the folder itself may be reached through a link
    problems: list[Problem] = []

    def attempt(file: str, step: Callable[[], Any], default: Any = None) -> Any:
        """What `step` returns; if it finds something unfit, a problem with `file` and `default`."""
        try:
            return step()
        except Unfit as unfit:
            problems.append(Problem(file, str(unfit)))
        except OSError as error:
            problems.append(Problem(file, f"cannot be read: {error.strerror}"))
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            problems.append(Problem(file, f"malformed: {error!r}"))
        return default

    present = attempt(".", lambda: list_files(folder, problems), {})
    ignored = [name for name in sorted(present) if is_left_by_macos(folder / name)]
    for name in ignored:
        del present[name]
    envelope = attempt(ENVELOPE, lambda: read_envelope(folder / ENVELOPE, RELEASE_TYPE))
    payload = envelope.payload if envelope else attempt(RELEASE, (folder / RELEASE).read_bytes)
    facts = attempt(ENVELOPE if envelope else RELEASE, lambda: read_facts(payload), {})
    if envelope and RELEASE in present:
        attempt(RELEASE, lambda: check_same(folder / RELEASE, payload))
    fits = check_files(folder, present, facts.get("files", {}), problems) if facts else set()

    rotations = attempt(ROTATIONS, lambda: read_rotations(folder), []) if ROTATIONS in fits else []
    own = None
    if FOUNDRY in fits or not facts:
        own = attempt(FOUNDRY, lambda: read_key((folder / FOUNDRY).read_bytes()))
    key, followed = choose_key(own, key_pem, rotations, problems)
    if envelope and key:
        attempt(ENVELOPE, lambda: check_signature(envelope, [key]))
    elif envelope and (key_pem is None or not problems):
        problems.append(Problem(ENVELOPE, "there is no key to check its signature with"))

    previous = carrier = "none"
    if facts and key:
        # What lies deeper is looked at wherever the files it needs are as they were signed.
        release = Release(folder, facts, fits, key, rotations)
        for file, needs, check in CHECKS:
            if all(release.has(name) for name in needs):
                attempt(file, lambda check=check: check(release))  # type: ignore[misc]
        previous = attempt("..", lambda: check_previous(folder, facts), "differs")
        carrier = attempt("..", lambda: check_carrier(folder, facts), "differs")
    ordered = list(dict.fromkeys(problems))
    key_id = hashlib.sha256(key).hexdigest() if key else ""
    return Verification(
        not ordered, folder.name, ordered, facts, key_id, key_pem is not None, followed, previous,
        carrier, ignored,
    )  # fmt: skip


# -- 1. what was signed ----------------------------------------------------------------------------


class Signed(NamedTuple):
    """A DSSE envelope with one signature."""

    kind: str
    payload: bytes
    key_id: str
    signature: bytes


def read_envelope(path: Path, kind: str) -> Signed:
    """A DSSE envelope in a file of its own; it must be written in exactly one way."""
    data = path.read_bytes()
    signed = parse_envelope(parse_json(data), kind)
    if canonical(envelope_json(signed)) != data:
        raise Unfit("not written in the one form that an envelope has")
    return signed


def parse_envelope(value: Any, kind: str) -> Signed:
    """The envelope in a JSON value: one signature, base64 without spare bits."""
    (signature,) = value["signatures"]
    signed = Signed(
        value["payloadType"],
        base64.b64decode(value["payload"], validate=True),
        signature["keyid"],
        base64.b64decode(signature["sig"], validate=True),
    )
    if signed.kind != kind:
        raise Unfit(f"it holds {signed.kind!r}, expected {kind!r}")
    if envelope_json(signed) != value:
        raise Unfit("not written in the one form that an envelope has")
    return signed


def envelope_json(signed: Signed) -> dict[str, Any]:
    """The JSON value of an envelope."""
    return {
        "payloadType": signed.kind,
        "payload": base64.b64encode(signed.payload).decode(),
        "signatures": [
            {"keyid": signed.key_id, "sig": base64.b64encode(signed.signature).decode()}
        ],
    }


def check_same(path: Path, payload: bytes) -> None:
    """Raise Unfit unless the file holds exactly what was signed."""
    if path.read_bytes() != payload:
        raise Unfit(f"not what was signed in {ENVELOPE}")


def check_signature(signed: Signed, keys: Sequence[bytes]) -> bytes:
    """The one of `keys` that signed the envelope; raises Unfit if none did."""
    kind = signed.kind.encode()
    # DSSE: what is signed is the pre-authentication encoding of type and payload.
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(signed.payload), signed.payload)
    key = {hashlib.sha256(key).hexdigest(): key for key in keys}.get(signed.key_id)
    if key is None:
        key_id = hashlib.sha256(keys[0]).hexdigest()
        raise Unfit(f"signed by key {signed.key_id[:16]}, not by {key_id[:16]}")
    if not ed25519_verify(key, message, signed.signature):
        raise Unfit(f"the signature of key {signed.key_id[:16]} does not fit")
    return key


def read_facts(payload: bytes) -> dict[str, Any]:
    """RELEASE.json, once all that is read from it below has the right form."""
    facts = parse_json(payload)
    if not isinstance(facts, dict) or facts.get("schema") != RELEASE_SCHEMA:
        raise Unfit(f"not a release of schema {RELEASE_SCHEMA}")
    if facts["name"] != f"week-{facts['week']}":
        raise Unfit(f"release {facts['name']!r} says that it is of week {facts['week']!r}")
    for name, about in facts["files"].items():
        if not is_safe_path(name) or not re.fullmatch(r"[0-9a-f]{64}", about["sha256"]):
            raise Unfit(f"file name {name[:80]!r} or its digest is not acceptable")
    generation, plan = facts["generation"], facts["plan"]
    texts = [
        facts["made_at"], facts["statement_sha256"], generation["name"], generation["run"],
        generation["checkpoint_digest"], plan["plan_id"], plan["merkle_root"],
        *(about[part] for about in facts["keys"].values() for part in ("path", "key_id")),
    ]  # fmt: skip
    for other in (facts["previous"], facts.get("carried_by")):
        if other is not None:
            texts += [other["name"], other["release_sha256"]]
    counts = [facts["audit"]["size"], plan["fossils"]]
    counts += [about["size_bytes"] for about in facts["files"].values()]
    if {type(text) for text in texts} != {str} or {type(count) for count in counts} != {int}:
        raise Unfit("it holds something else where text or a count should be")
    return facts


class Rotation(NamedTuple):
    """A statement, signed by the old key, that the new one replaces it."""

    role: str
    old: bytes
    new: bytes


def read_rotations(folder: Path) -> list[Rotation]:
    """Every rotation in the release, oldest first, its signature checked."""
    found = []
    for value in parse_json((folder / ROTATIONS).read_bytes()):
        signed = parse_envelope(value, ROTATION_TYPE)
        about = parse_json(signed.payload)
        old, new = (read_key(about[part].encode()) for part in ("old_key", "new_key"))
        check_signature(signed, [old])
        found.append(Rotation(about["role"], old, new))
    return found


def ancestors(key: bytes, role: str, rotations: Sequence[Rotation]) -> list[bytes]:
    """The keys that `key` descends from, latest first."""
    found: list[bytes] = []
    for rotation in reversed(rotations):
        if rotation.role == role and rotation.new == (found[-1] if found else key):
            found.append(rotation.old)
    return found


def choose_key(
    own: bytes | None,
    key_pem: bytes | None,
    rotations: Sequence[Rotation],
    problems: list[Problem],
) -> tuple[bytes | None, bool]:
    """The key that must have signed the release, and whether the given one led to it.

    `own` is the release's. It counts where no other was given, or where the one that was given
    stands in its line; else the given one does.
    """
    if key_pem is None:
        return own, False
    try:
        given = read_key(key_pem)
    except (Unfit, ValueError) as error:
        problems.append(Problem("--key", f"not an Ed25519 public key in PEM: {error}"))
        return None, False
    if own is not None and given in ancestors(own, "foundry", rotations):
        return own, True
    if own not in (None, given):
        problems.append(Problem(FOUNDRY, "not the key that was given"))
    return given, False


def read_key(pem: bytes) -> bytes:
    """The 32 raw bytes of an Ed25519 public key in PEM (SubjectPublicKeyInfo, RFC 8410)."""
    lines = pem.decode("ascii").split("\n")
    if lines[0] != "-----BEGIN PUBLIC KEY-----" or lines[2:] != ["-----END PUBLIC KEY-----", ""]:
        raise Unfit("not a public key in PEM")
    der = base64.b64decode(lines[1], validate=True)
    prefix = bytes.fromhex("302a300506032b6570032100")
    if len(der) != len(prefix) + 32 or not der.startswith(prefix):
        raise Unfit("not an Ed25519 public key")
    return der[len(prefix) :]


# -- 2. the files ----------------------------------------------------------------------------------


def list_files(folder: Path, problems: list[Problem]) -> dict[str, int]:
    """Size of every plain file below `folder`; anything else becomes a problem. Follows no link."""
    if not folder.is_dir():
        raise Unfit("there is no folder of this name")
    found: dict[str, int] = {}
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        with os.scandir(folder / parent) as entries:
            for entry in entries:
                name = f"{parent}{entry.name}"
                about = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(about.st_mode):
                    waiting.append(f"{name}/")
                elif stat.S_ISREG(about.st_mode):
                    found[name] = about.st_size
                else:
                    problems.append(Problem(name, "neither a plain file nor a folder"))
    return found


def is_left_by_macos(path: Path) -> bool:
    """Whether a file is `.DS_Store`, or the AppleDouble companion of a file on a foreign drive."""
    if path.name.startswith("._") and path.with_name(path.name[2:]).exists():
        try:
            with path.open("rb") as file:
                return file.read(4) == b"\x00\x05\x16\x07"
        except OSError:
            return False
    return path.name == ".DS_Store"


def check_files(
    folder: Path, present: dict[str, int], signed: dict[str, Any], problems: list[Problem]
) -> set[str]:
    """Names of the files that are as signed; the others become problems."""
    fits = set()
    for name, about in sorted(signed.items()):
        if name not in present:
            if not any(problem.file == name for problem in problems):
                problems.append(Problem(name, "missing"))
            continue
        try:
            actual = file_sha256(folder / name)
        except OSError as error:
            problems.append(Problem(name, f"cannot be read: {error.strerror}"))
            continue
        if actual != about["sha256"]:
            problems.append(
                Problem(name, f"sha256 is {actual}, the release was signed with {about['sha256']}")
            )
        elif present[name] != about["size_bytes"]:
            problems.append(Problem(name, f"{present[name]} bytes, {about['size_bytes']} signed"))
        else:
            fits.add(name)
    beside = sorted(set(present) - set(signed) - {RELEASE, ENVELOPE})
    problems += [Problem(name, "not part of the release") for name in beside]
    for name in (RELEASE, ENVELOPE):
        if name not in present and not any(problem.file == name for problem in problems):
            problems.append(Problem(name, "missing"))
    return fits


def is_safe_path(name: str) -> bool:
    """Whether a name leads to a file inside the folder, on every system."""
    parts = name.split("/")
    return not re.search(r'[\x00-\x1f\\:*?"<>|]', name) and not {"", ".", ".."} & set(parts)


def file_sha256(path: Path) -> str:
    """Digest of a file, in constant memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# -- 3. to 5.: what the files say, against each other ----------------------------------------------


class Release:
    """A release whose file digests are known; what the checks below look at."""

    def __init__(
        self,
        folder: Path,
        facts: dict[str, Any],
        fits: set[str],
        key: bytes,
        rotations: Sequence[Rotation],
    ) -> None:
        self.folder = folder
        self.facts = facts
        # What an older key signed before it was replaced counts, as the release's key lists it.
        self.keys = [key, *ancestors(key, "foundry", rotations)]
        self.rotations = rotations
        self._fits = fits
        self._statement: tuple[Signed, dict[str, Any]] | None = None

    def has(self, name: str) -> bool:
        """Whether this file is as signed, or, of a folder, all that was signed in it."""
        if not name.endswith("/"):
            return name in self._fits
        return all(n in self._fits for n in self.facts["files"] if n.startswith(name))

    @property
    def is_carried(self) -> bool:
        """Whether an earlier release has the weights and the list of fossils."""
        return self.facts.get("carried_by") is not None

    def json(self, name: str) -> Any:
        """A JSON file."""
        return parse_json((self.folder / name).read_bytes())

    def statement(self) -> tuple[Signed, dict[str, Any]]:
        """Envelope and content of the signed statement in proof.json."""
        if self._statement is None:
            signed = parse_envelope(self.json("proof.json")["envelope"], STATEMENT_TYPE)
            check_signature(signed, self.keys)
            self._statement = signed, parse_json(signed.payload)
        return self._statement


def check_complete(release: Release) -> None:
    """What a release must hold was signed; a week without weights holds none at all."""
    listed = release.facts["files"]
    for name in [*ALWAYS, *([] if release.is_carried else CARRIED)]:
        if name not in listed:
            raise Unfit(f"{name} is not part of it, and should be")
    if release.is_carried:
        spare = [n for n in listed if n.startswith(("model/", "evidence/"))]
        if spare:
            raise Unfit(f"{min(spare)} belongs to {release.facts['carried_by']['name']}")


def check_sums(release: Release) -> None:
    """SHA256SUMS lists what RELEASE.json lists."""
    lines = [
        f"{about['sha256']}  {name}\n"
        for name, about in sorted(release.facts["files"].items())
        if name not in NOT_IN_SUMS
    ]
    if (release.folder / "SHA256SUMS").read_text("utf-8") != "".join(lines):
        raise Unfit("it does not list the files that were signed")


def check_proof(release: Release) -> None:
    """The statement is signed, logged, and the one that RELEASE.json names."""
    signed, statement = release.statement()
    digest = hashlib.sha256(signed.payload).hexdigest()
    if digest != release.facts["statement_sha256"]:
        raise Unfit("another statement than the release names")
    predicate, generation = statement["predicate"], release.facts["generation"]
    if predicate["run"] != generation["run"]:
        raise Unfit(f"about run {predicate['run']}, the release says {generation['run']}")
    if predicate["plan"] != release.facts["plan"]:
        raise Unfit("about another plan than the release")
    if predicate["gate"]["promote"] is not True:
        raise Unfit("the gate did not let this checkpoint pass")

    audit = release.json("proof.json")["audit"]
    entry = audit["entry"].encode()
    origin, size, root = read_tree_head(audit["checkpoint"], release.keys)
    siblings = [bytes.fromhex(digest) for digest in audit["proof"]]
    if not is_included(leaf_hash(entry), audit["index"], size, siblings, root):
        raise Unfit(f"the audit log {origin} of {size} entries does not hold it")
    if parse_json(entry)["details"]["statement_sha256"] != digest:
        raise Unfit("the audit log's entry is about another statement")


def check_weights(release: Release) -> None:
    """The weights are those stated; only the optimiser's state may be absent."""
    _, statement = release.statement()
    digests = release.json("model/digests.json")
    subjects = {s["name"]: s["digest"]["sha256"] for s in statement["subject"]}
    if digests != subjects:
        raise Unfit("not the files that the statement is about")
    stated = hashlib.sha256(canonical(digests)).hexdigest()
    named = {release.facts["generation"]["checkpoint_digest"]}
    if {stated, statement["predicate"]["checkpoint_digest"]} != named:
        raise Unfit("not the checkpoint that the release names")
    files = {n: about["sha256"] for n, about in release.facts["files"].items()}
    for name, expected in digests.items():
        found = files.get(f"model/{name}")
        if found != expected and not (found is None and name == "optimizer.safetensors"):
            raise Unfit(f"model/{name} is not the file that the statement is about")
    listed = {f"model/{name}" for name in digests} | {"model/digests.json"}
    if beside := {n for n in files if n.startswith("model/")} - listed:
        raise Unfit(f"{min(beside)} is not part of the checkpoint")


def check_metrics(release: Release) -> None:
    """metrics.json holds what the statement holds."""
    _, statement = release.statement()
    metrics, predicate = release.json("metrics.json"), statement["predicate"]
    if metrics["report"] != predicate["report"] or metrics["gate"] != predicate["gate"]:
        raise Unfit("its numbers are not those of the signed statement")


def check_gate(release: Release) -> None:
    """The champion's gate trace is the one of the signed statement."""
    predicate = release.statement()[1]["predicate"]
    name = f"gate/{predicate['run']}.json"
    if release.has(name) and release.json(name) != predicate["gate"]:
        raise Unfit(f"{name} is not the decision in the signed statement")


def check_plan(release: Release) -> None:
    """plan.json is the plan that the release names."""
    plan = release.facts["plan"]
    if release.facts["files"]["plan.json"]["sha256"] != plan["plan_id"]:
        raise Unfit("not the plan that the release names")
    content = release.json("plan.json")
    if (content["fossils"], content["merkle_root"]) != (plan["fossils"], plan["merkle_root"]):
        raise Unfit("it has another number of fossils or Merkle root than the release says")


def check_manifests(release: Release) -> None:
    """Every shard of the plan has a manifest signed by the vault's key."""
    if release.is_carried:
        return
    key = read_key((release.folder / "keys" / "vault.pub").read_bytes())
    keys = [key, *ancestors(key, "vault", release.rotations)]
    expected = set()
    for shard in release.json("plan.json")["shards"]:
        name = manifest_name(shard)
        expected.add(name)
        if not release.has(name):
            raise Unfit(f"{name} is missing: the plan names shard {shard['path']}")
        signed = parse_envelope(release.json(name), MANIFEST_TYPE)
        try:
            check_signature(signed, keys)
        except Unfit as unfit:
            raise Unfit(f"{name}: {unfit}") from None
        manifest = parse_json(signed.payload)
        if any(manifest[part] != shard[part] for part in shard):
            raise Unfit(f"{name} is about another shard than the plan's {shard['path']}")
    there = {n for n in release.facts["files"] if n.startswith("evidence/manifests/")}
    if beside := there - expected:
        raise Unfit(f"{min(beside)} belongs to no shard of the plan")


def manifest_name(shard: dict[str, Any]) -> str:
    """Where a release keeps the manifest of a shard of the plan."""
    return f"evidence/manifests/{shard['sha256']}.json"


def check_fossils(release: Release) -> None:
    """The list of fossils leads to each shard's Merkle root and to the plan's."""
    plan = release.json("plan.json")
    excluded = set(plan["excluded"])
    in_plan = []
    with (release.folder / "evidence" / "fossils.txt").open(encoding="ascii", newline="") as file:
        lines = fossil_lines(file)
        for shard in plan["shards"]:
            tree = Tree()
            for _ in range(shard["count"]):
                cid, verdict, split = next(lines, ("", "", ""))
                tree.add(b'["%b","%b"]' % (cid.encode(), verdict.encode()))
                if (split == "excluded") != (cid in excluded):
                    raise Unfit(f"fossil {cid} is not excluded as the plan says")
                if split != "excluded":
                    in_plan.append(cid)
            if tree.root().hex() != shard["merkle_root"]:
                raise Unfit(f"its fossils do not lead to the Merkle root of shard {shard['path']}")
        if next(lines, None) is not None:
            raise Unfit("it lists more fossils than the shards hold")
    tree = Tree()
    for cid in sorted(in_plan):
        tree.add(cid.encode())
    if (tree.size, tree.root().hex()) != (plan["fossils"], plan["merkle_root"]):
        raise Unfit("its fossils do not lead to the plan's Merkle root")


def fossil_lines(file: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(cid, verdict, split) of each line."""
    pattern = re.compile(r"(b[a-z2-7]{58}) (PASS|FAIL) (train|held_out|excluded)\n")
    for number, line in enumerate(file, start=1):
        match = pattern.fullmatch(line)
        if match is None:
            raise Unfit(f"line {number} is not: CID, verdict, split")
        yield match[1], match[2], match[3]


def check_keys(release: Release) -> None:
    """The keys in the folder are those that RELEASE.json names."""
    for about in release.facts["keys"].values():
        if not about["path"].startswith("keys/") or not release.has(about["path"]):
            raise Unfit(f"{about['path']} is not a key file of the release")
        raw = read_key((release.folder / about["path"]).read_bytes())
        if hashlib.sha256(raw).hexdigest() != about["key_id"]:
            raise Unfit(f"{about['path']} is not the key that the release names")


def check_previous(folder: Path, facts: dict[str, Any]) -> str:
    """`none`, `fits` or `absent`; raises Unfit if another release lies where it should be."""
    if facts["previous"] is None:
        return "none"
    found = release_beside(folder, facts["previous"], "follows")
    return "absent" if found is None else "fits"


def check_carrier(folder: Path, facts: dict[str, Any]) -> str:
    """The same for the release that has the weights, which must be those of this release."""
    if facts.get("carried_by") is None:
        return "none"
    found = release_beside(folder, facts["carried_by"], "takes its weights from")
    if found is None:
        return "absent"
    path, earlier = found
    name = facts["carried_by"]["name"]
    if earlier.get("carried_by") is not None:
        raise Unfit(f"{name} has no weights either")
    for part in ("generation", "plan", "statement_sha256"):
        if earlier[part] != facts[part]:
            raise Unfit(f"{name} is about another {part.split('_')[0]}")
    for file, about in sorted(earlier["files"].items()):
        if file.startswith("model/") and file_sha256(path / file) != about["sha256"]:
            raise Unfit(f"{name}/{file} is not the file that was signed")
    return "fits"


def release_beside(
    folder: Path, named: dict[str, Any], verb: str
) -> tuple[Path, dict[str, Any]] | None:
    """Folder and RELEASE.json of a release named by digest, if it lies beside this one."""
    if not re.fullmatch(r"week-\d{4}-\d\d-\d\d", named["name"]):
        raise Unfit("the previous release has no acceptable name")
    path = folder.parent / named["name"]
    if not (path / RELEASE).is_file():
        return None
    if file_sha256(path / RELEASE) != named["release_sha256"]:
        raise Unfit(f"{named['name']}/{RELEASE} beside it is not the one that this release {verb}")
    return path, parse_json((path / RELEASE).read_bytes())


# What every release holds, and what it holds unless an earlier one carries the weights.
ALWAYS = ["SHA256SUMS", "metrics.json", "plan.json", "proof.json", "keys/foundry.pub"]
CARRIED = ["model/digests.json", "evidence/fossils.txt", "keys/vault.pub"]

# What is checked: the file that is named when it fails, the files that it needs, the check.
CHECKS: list[tuple[str, Sequence[str], Callable[[Release], None]]] = [
    (RELEASE, [], check_complete),
    ("SHA256SUMS", ["SHA256SUMS"], check_sums),
    ("keys/", ["keys/"], check_keys),
    ("proof.json", ["proof.json"], check_proof),
    ("model/digests.json", ["proof.json", "model/digests.json"], check_weights),
    ("metrics.json", ["proof.json", "metrics.json"], check_metrics),
    ("gate/", ["proof.json"], check_gate),
    ("plan.json", ["plan.json"], check_plan),
    (
        "evidence/manifests/",
        ["plan.json", "keys/vault.pub", "evidence/manifests/"],
        check_manifests,
    ),
    ("evidence/fossils.txt", ["plan.json", "evidence/fossils.txt"], check_fossils),
]


# -- Merkle trees: RFC 6962, section 2.1, and RFC 9162, section 2.1.3.2 ----------------------------


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The root over leaves added one after another."""

    def __init__(self) -> None:
        self.size = 0
        self._peaks: list[bytes] = []

    def add(self, data: bytes) -> None:
        """Append a leaf."""
        digest, position = leaf_hash(data), self.size
        while position & 1:
            digest, position = node_hash(self._peaks.pop(), digest), position >> 1
        self._peaks.append(digest)
        self.size += 1

    def root(self) -> bytes:
        """The root over what was added."""
        if not self._peaks:
            return hashlib.sha256(b"").digest()
        digest = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            digest = node_hash(peak, digest)
        return digest


def is_included(
    digest: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes
) -> bool:
    """Whether leaf hash `digest` stands at `index` of the tree."""
    if not 0 <= index < size:
        return False
    node, last = index, size - 1
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            digest = node_hash(sibling, digest)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            digest = node_hash(digest, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and digest == expected_root


def read_tree_head(note: str, keys: Sequence[bytes]) -> tuple[str, int, bytes]:
    """Origin, size and root of a C2SP checkpoint note that one of `keys` signed."""
    text, _, signatures = note.rpartition("\n\n")
    origin, size, root = text.split("\n")
    marks = {hashlib.sha256(origin.encode() + b"\n\x01" + key).digest()[:4]: key for key in keys}
    for line in signatures.splitlines():
        dash, name, value = line.split(" ")
        data = base64.b64decode(value, validate=True)
        if (dash, name) == ("\u2014", origin) and data[:4] in marks:
            if not ed25519_verify(marks[data[:4]], f"{text}\n".encode(), data[4:]):
                raise Unfit("the signature of the audit log's tree head does not fit")
            return origin, int(size), base64.b64decode(root, validate=True)
    raise Unfit("the audit log's tree head is not signed by the key")


# -- JSON ------------------------------------------------------------------------------------------


def parse_json(data: bytes) -> Any:
    """Strict JSON: UTF-8, no key twice in an object, no NaN."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            raise Unfit("a key stands twice in one JSON object")
        return value

    def refuse(name: str) -> None:
        raise Unfit(f"{name} is not JSON")

    return json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)


def canonical(value: Any) -> bytes:
    """RFC 8785 of JSON that holds no numbers: keys ordered by UTF-16 units, no spaces."""
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return b"{%b}" % b",".join(canonical(key) + b":" + canonical(value[key]) for key in keys)
    if isinstance(value, list):
        return b"[%b]" % b",".join(canonical(item) for item in value)
    if not isinstance(value, str):
        raise Unfit("expected text")
    return json.dumps(value, ensure_ascii=False).encode()


# -- Ed25519: verification after RFC 8032, section 5.1.7 -------------------------------------------
# Points are (X, Y, Z, T) in extended coordinates: x = X/Z, y = Y/Z, x y = T/Z.

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
SQRT_M1 = pow(2, (P - 1) // 4, P)

Point = tuple[int, int, int, int]


def ed25519_verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is that of `public_key` (32 bytes) over `message`."""
    if len(public_key) != 32 or len(signature) != 64:
        return False
    a = decompress(public_key)
    s = int.from_bytes(signature[32:], "little")
    if a is None or s >= L:  # s >= L would be a second form of the same signature
        return False
    digest = hashlib.sha512(signature[:32] + public_key + message).digest()
    h = int.from_bytes(digest, "little") % L
    # [s]B = R + [h]A, checked as the encoding of [s]B + [h](-A).
    minus_a = (P - a[0], a[1], a[2], P - a[3])
    return compress(double_multiply(s, BASE, h, minus_a)) == signature[:32]


def add(p: Point, q: Point) -> Point:
    """Sum of two points (RFC 8032, section 5.1.4)."""
    a = (p[1] - p[0]) * (q[1] - q[0]) % P
    b = (p[1] + p[0]) * (q[1] + q[0]) % P
    c = 2 * p[3] * q[3] * D % P
    d = 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def double(p: Point) -> Point:
    """Twice a point."""
    a, b, c = p[0] * p[0] % P, p[1] * p[1] % P, 2 * p[2] * p[2] % P
    h = a + b
    e = h - (p[0] + p[1]) ** 2 % P
    g = a - b
    f = c + g
    return e * f % P, g * h % P, f * g % P, e * h % P


def double_multiply(s: int, p: Point, t: int, q: Point) -> Point:
    """[s]P + [t]Q, both at once in windows of four bits. Not constant-time: nothing is secret."""
    tables = []
    for point in (p, q):
        multiples: list[Point] = [(0, 1, 1, 0), point]
        for _ in range(14):
            multiples.append(add(multiples[-1], point))
        tables.append(multiples)
    result: Point = (0, 1, 1, 0)
    for shift in range(252, -1, -4):
        result = double(double(double(double(result))))
        for scalar, multiples in zip((s, t), tables):  # noqa: B905 - `strict` is not in 3.9
            digit = (scalar >> shift) & 15
            if digit:
                result = add(result, multiples[digit])
    return result


def compress(p: Point) -> bytes:
    """32 bytes of a point (RFC 8032, section 5.1.2)."""
    inverse = pow(p[2], P - 2, P)
    x, y = p[0] * inverse % P, p[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decompress(data: bytes) -> Point | None:
    """The point in 32 bytes, or None if there is none (RFC 8032, section 5.1.3)."""
    number = int.from_bytes(data, "little")
    sign, y = number >> 255, number & ((1 << 255) - 1)
    if y >= P:
        return None
    u, v = (y * y - 1) % P, (D * y * y + 1) % P
    # x = (u/v)^((p+3)/8), corrected by sqrt(-1) if need be.
    x = u * pow(v, 3, P) * pow(u * pow(v, 7, P), (P - 5) // 8, P) % P
    if (v * x * x - u) % P:
        x = x * SQRT_M1 % P
    if (v * x * x - u) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


_BASE = decompress((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))
assert _BASE is not None
BASE: Point = _BASE


# -- the command -----------------------------------------------------------------------------------


def report_text(result: Verification) -> str:
    """The result in words."""
    lines = [f"{result.name}: {'VERIFIED' if result.ok else 'NOT VERIFIED'}"]
    lines += [f"  {problem.file}: {problem.what}" for problem in result.problems]
    if result.ok:
        facts = result.facts
        generation, plan, files = facts["generation"], facts["plan"], facts["files"]
        size_mb = sum(about["size_bytes"] for about in files.values()) / 1e6
        before = facts["previous"]["name"] if facts["previous"] else "none: this is the first"
        where = {"fits": ", beside it, fits", "absent": ", not here to compare"}
        lines += [
            f"  made        {facts['made_at']}, audit log at {facts['audit']['size']} entries",
            f"  model       {generation['name']}, by {generation['run']}",
            f"  checkpoint  {generation['checkpoint_digest']}",
            f"  weights     {weights_text(result)}",
            f"  trained on  {plan['fossils']} fossils, Merkle root {plan['merkle_root']}",
            f"  follows     {before}{where.get(result.previous, '')}",
            f"  files       {len(files) + 2}, {size_mb:.3g} MB, each as signed",
            f"  signed by   {result.key_id}",
        ]
    if result.ignored:
        lines.append(f"  note        left by macOS and ignored: {', '.join(result.ignored)}")
    if result.followed:
        lines.append("  note        the key that was given is an older one, and leads to this one")
    if not result.pinned:
        lines.append(
            "  note        unpinned: the key is the one inside the release. It shows that nothing "
            "was changed,\n              not who made it. Compare the key, or give it with --key."
        )
    return "\n".join(lines) + "\n"


def weights_text(result: Verification) -> str:
    """Where the weights are."""
    named = result.facts.get("carried_by")
    if named is None:
        return "here, each file as stated"
    if result.carrier == "fits":
        return f"in {named['name']}, beside this one: they fit"
    return f"in {named['name']}, not here to compare: get it, and verify it as well"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="verify_release.py",
        description="Check a release of an scf foundry: every byte, signature and root.",
        epilog="Exit code 0: everything fits. 5: something does not; the file is named.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the release (week-YYYY-MM-DD)")
    parser.add_argument("--key", type=Path, metavar="FILE", help="the foundry's public key (PEM)")
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    chosen = parser.parse_args(arguments)
    key_pem = None
    if chosen.key is not None:
        try:
            key_pem = chosen.key.read_bytes()
        except OSError as error:
            parser.error(f"--key {chosen.key}: {error.strerror}")
    result = verify_release(chosen.folder, key_pem)
    if chosen.json:
        sys.stdout.write(json.dumps(result.to_json(), indent=2, sort_keys=True) + "\n")
    else:
        sys.stdout.write(report_text(result))
    return EXIT_OK if result.ok else EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
