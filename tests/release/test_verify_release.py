"""The one-file verifier: whatever is not as it was signed is found, and the file is named."""

import ast
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from scf.core.canonical import canonical_json
from scf.release import verify_release as verifier
from scf.release.archive import pack
from scf.release.verify_release import ed25519_verify, verify_release
from scf.signing.verify import PublicKey
from support.foundries import SmallFoundry, small_foundry
from support.releases import promote, releasable, release_week, writable_copy
from support.runs import measured_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SmallFoundry:
    place = releasable(tmp_path_factory.mktemp("foundry") / "foundry")
    release_week(place)
    return place


@pytest.fixture
def release(place: SmallFoundry, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    source = place.root / "release_history" / "week-2026-11-16"
    return writable_copy(source, tmp_path / "week-2026-11-16")


def blamed(release: Path, key: bytes | None = None) -> set[str]:
    checked = verify_release(release, key)
    assert not checked.ok
    return {problem.file for problem in checked.problems}


# -- Ed25519 ---------------------------------------------------------------------------------------

# RFC 8032, section 7.1: public key, message, signature. TEST 1, 2, 3, SHA(abc).
RFC_8032 = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
            "d25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
            "387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
            "4a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
    (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        (
            "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a836ba3c23a3feebbd"
            "454d4423643ce80e2a9ac94fa54ca49f"
        ),
        (
            "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b58909351fc9ac90b3ecfdfbc7c66431e030"
            "3dca179c138ac17ad9bef1177331a704"
        ),
    ),
]


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_vectors_of_rfc_8032_verify(key: str, message: str, signature: str) -> None:
    raw = bytes.fromhex(key)
    assert ed25519_verify(raw, bytes.fromhex(message), bytes.fromhex(signature))
    assert not ed25519_verify(raw, bytes.fromhex(message) + b"x", bytes.fromhex(signature))


def test_it_agrees_with_cryptography() -> None:
    """Random keys and messages: good signatures verify, any flipped bit does not."""
    generator = random.Random(5)
    for length in [0, 1, 31, 32, 33, 200, 5000]:
        private = Ed25519PrivateKey.from_private_bytes(generator.randbytes(32))
        key = private.public_key().public_bytes_raw()
        message = generator.randbytes(length)
        signature = private.sign(message)
        assert ed25519_verify(key, message, signature)
        for data in (key, signature):
            changed = bytearray(data)
            changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            if data is key:
                assert not ed25519_verify(bytes(changed), message, signature)
            else:
                assert not ed25519_verify(key, message, bytes(changed))


def test_a_signature_has_one_form() -> None:
    """s + L is the same number modulo L, and refused: a second signature must not appear."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(32))
    key, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    s = int.from_bytes(signature[32:], "little")
    again = signature[:32] + (s + verifier.L).to_bytes(32, "little")

    assert ed25519_verify(key, b"m", signature)
    assert not ed25519_verify(key, b"m", again)


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        (b"", bytes(64)),
        (bytes(32), b""),
        (b"\xff" * 32, bytes(64)),  # y >= p
        ((2).to_bytes(32, "little"), bytes(64)),  # no point has this y
        ((1 | 1 << 255).to_bytes(32, "little"), bytes(64)),  # x = 0 with a sign
    ],
)
def test_what_is_no_key_or_signature_is_refused(key: bytes, signature: bytes) -> None:
    assert not ed25519_verify(key, b"m", signature)


def test_a_verification_is_quick() -> None:
    """Some milliseconds: the manifests of a large plan are thousands of signatures."""
    private = Ed25519PrivateKey.generate()
    key, signature = private.public_key().public_bytes_raw(), private.sign(b"m")
    start = time.process_time()
    for _ in range(20):
        assert ed25519_verify(key, b"m", signature)
    assert (time.process_time() - start) / 20 < 0.05


# -- a release as a stranger gets it ---------------------------------------------------------------


def run_alone(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The file alone, in isolated mode, without any of our code on the path."""
    alone = tmp_path / "alone.py"
    shutil.copy(verifier.__file__, alone)
    return subprocess.run(
        [sys.executable, "-I", "-S", str(alone), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )


def test_the_file_runs_alone(place: SmallFoundry, release: Path, tmp_path: Path) -> None:
    key = place.home / "keys" / "foundry.pub"

    done = run_alone(tmp_path, str(release), "--key", str(key))

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("week-2026-11-16: VERIFIED\n")
    assert "ebdm_gen0001, by run-000000000001" in done.stdout
    assert "unpinned" not in done.stdout


def test_the_file_asks_for_nothing_but_python_3_9() -> None:
    """Its syntax is that of 3.9, and every import is in the standard library."""
    tree = ast.parse(Path(verifier.__file__).read_text(), feature_version=(3, 9))

    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in imports if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_without_a_key_it_says_that_it_is_unpinned(release: Path, tmp_path: Path) -> None:
    done = run_alone(tmp_path, str(release))

    assert done.returncode == 0
    assert "unpinned" in done.stdout


def test_a_failure_exits_with_5_and_names_the_file(release: Path, tmp_path: Path) -> None:
    (release / "plan.json").write_bytes(b"{}")

    done = run_alone(tmp_path, str(release), "--json")

    assert done.returncode == 5
    found = json.loads(done.stdout)
    assert not found["ok"]
    assert found["problems"][0]["file"] == "plan.json"
    assert "sha256" in found["problems"][0]["what"]


def test_arguments_that_cannot_be_used(release: Path, tmp_path: Path) -> None:
    assert run_alone(tmp_path).returncode == 2
    assert run_alone(tmp_path, str(release), "--key", "absent.pub").returncode == 2
    assert run_alone(tmp_path, "absent").returncode == 5
    assert "Check a release" in run_alone(tmp_path, "--help").stdout


def test_the_verifier_in_the_release_is_the_one_we_ship(release: Path) -> None:
    assert (release / "verify_release.py").read_bytes() == Path(verifier.__file__).read_bytes()


def test_another_foundrys_key_is_refused(place: SmallFoundry, release: Path, tmp_path) -> None:
    (tmp_path / "other").mkdir()
    other = small_foundry(tmp_path / "other").keys["foundry"].to_pem()

    assert blamed(release, other) >= {"RELEASE.dsse.json", "keys/foundry.pub"}
    assert blamed(release, b"not a key") == {"--key"}
    assert blamed(release, place.keys["vault"].to_pem()) >= {"RELEASE.dsse.json"}


# -- damage ------------------------------------------------------------------------------------------


def test_one_flipped_byte_anywhere_is_found_and_named(place: SmallFoundry, release: Path) -> None:
    """Every file five times, any byte, any bit, with and without a pinned key."""
    generator = random.Random(11)
    key = place.keys["foundry"].to_pem()
    files = sorted(p for p in release.rglob("*") if p.is_file())
    trials = 0
    for path in files * 5:
        data = path.read_bytes()
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        name = path.relative_to(release).as_posix()
        assert name in blamed(release, key if trials % 2 else None)
        path.write_bytes(data)
        trials += 1
    assert trials >= 100
    assert verify_release(release, key).ok


def test_every_byte_of_the_signature_counts(place: SmallFoundry, release: Path) -> None:
    """The envelope is what all hangs on: 150 flips in it, each found there."""
    generator = random.Random(12)
    path = release / "RELEASE.dsse.json"
    data = path.read_bytes()
    for _ in range(150):
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        assert "RELEASE.dsse.json" in blamed(release)
    for longer in (data + b"\n", b" " + data):
        path.write_bytes(longer)
        assert "RELEASE.dsse.json" in blamed(release)


def test_a_missing_file_is_named(release: Path) -> None:
    for path in sorted(p for p in release.rglob("*") if p.is_file()):
        kept = path.read_bytes()
        path.unlink()
        assert path.relative_to(release).as_posix() in blamed(release)
        path.write_bytes(kept)
    assert verify_release(release).ok


@pytest.mark.parametrize(
    "name", ["extra", "model/extra.bin", ".hidden", "evidence/manifests/x.json"]
)
def test_an_extra_file_is_named(release: Path, name: str) -> None:
    (release / name).write_bytes(b"")

    assert blamed(release) == {name}


def test_what_macos_leaves_on_a_drive_is_said_and_passed_over(release: Path) -> None:
    """AppleDouble companions and .DS_Store do no harm; a file that only looks like one does."""
    (release / ".DS_Store").write_bytes(b"Bud1")
    (release / "model" / "._config.json").write_bytes(b"\x00\x05\x16\x07rest")

    checked = verify_release(release)
    assert checked.ok
    assert checked.ignored == [".DS_Store", "model/._config.json"]
    assert "left by macOS and ignored: .DS_Store" in checked.text()
    (release / "model" / "._absent").write_bytes(b"\x00\x05\x16\x07rest")
    (release / "._plan.json").write_bytes(b"#!/bin/sh")
    assert blamed(release) == {"model/._absent", "._plan.json"}


def test_the_folder_may_be_reached_through_a_link(release: Path, tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to(release)

    assert verify_release(tmp_path / "latest").ok


def test_links_and_other_things_are_named_and_not_followed(release: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(release / "plan.json", outside)
    (release / "plan.json").symlink_to(outside)
    os.mkfifo(release / "pipe")
    (release / "loop").symlink_to(release)

    assert blamed(release) == {"plan.json", "pipe", "loop"}


def test_a_linked_folder_is_not_followed(release: Path, tmp_path: Path) -> None:
    shutil.move(release / "model", tmp_path / "model")
    (release / "model").symlink_to(tmp_path / "model")

    assert {"model", "model/model.safetensors"} <= blamed(release)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"a":1,"a":1}', b"[" * 100_000])
@pytest.mark.parametrize("name", ["RELEASE.json", "RELEASE.dsse.json", "keys/foundry.pub"])
def test_files_with_other_content_are_named(release: Path, name: str, content: bytes) -> None:
    (release / name).write_bytes(content)

    assert name in blamed(release)


def test_a_folder_that_is_none_fails(tmp_path: Path) -> None:
    assert blamed(tmp_path / "absent") >= {"."}
    assert blamed(tmp_path) >= {"RELEASE.json", "RELEASE.dsse.json"}


# -- signed, and still not true ------------------------------------------------------------------------
# Whoever holds the key can sign anything. These releases are signed well and contradict themselves.

Change = Callable[[dict[str, bytes], dict, SmallFoundry], None]


def resigned(place: SmallFoundry, release: Path, target: Path, change: Change) -> Path:
    """The release with its files and RELEASE.json changed, packed and signed anew."""
    about = json.loads((release / "RELEASE.json").read_bytes())
    files = {name: (release / name).read_bytes() for name in about["files"] if name != "SHA256SUMS"}
    del about["files"], about["schema"]
    change(files, about, place)
    target.mkdir()
    pack(target, files, about, place.signer())
    return target


def _swap_proof(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    from support.runs import attested

    files["proof.json"] = attested(place, measured_run(place, number=8)).read_bytes()


def _swap_weights(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    files["model/model.safetensors"] = files["model/ema.safetensors"]


def _swap_config_and_digests(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    from scf.core.identity import sha256_hex

    digests = json.loads(files["model/digests.json"])
    files["model/config.json"] = b"{}"
    digests["config.json"] = sha256_hex(b"{}")
    files["model/digests.json"] = json.dumps(digests).encode()
    about["generation"]["checkpoint_digest"] = sha256_hex(canonical_json(digests))


def _better_metrics(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    metrics = json.loads(files["metrics.json"])
    metrics["report"]["dsm_loss"]["mean"] = 0.001
    files["metrics.json"] = canonical_json(metrics)


def _other_fossil(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    lines = files["evidence/fossils.txt"].splitlines(keepends=True)
    files["evidence/fossils.txt"] = b"".join([lines[1], *lines[1:]])


def _fossil_less(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    lines = files["evidence/fossils.txt"].splitlines(keepends=True)
    files["evidence/fossils.txt"] = b"".join(lines[:-1])


def _fossil_more(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    lines = files["evidence/fossils.txt"].splitlines(keepends=True)
    files["evidence/fossils.txt"] = b"".join([*lines, lines[0]])


def _excluded(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    text = files["evidence/fossils.txt"]
    files["evidence/fossils.txt"] = text.replace(b" train\n", b" excluded\n", 1)


def _bad_line(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    files["evidence/fossils.txt"] = files["evidence/fossils.txt"].replace(b"PASS", b"GOOD", 1)


def _no_manifest(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    del files[min(n for n in files if n.startswith("evidence/manifests/"))]


def _spare_manifest(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    name = min(n for n in files if n.startswith("evidence/manifests/"))
    files["evidence/manifests/spare.json"] = files[name]


def _other_vault_key(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    key = PublicKey(Ed25519PrivateKey.generate().public_key().public_bytes_raw())
    files["keys/vault.pub"] = key.to_pem()
    about["keys"]["vault"]["key_id"] = key.key_id


def _wrong_key_id(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    about["keys"]["vault"]["key_id"] = "e" * 64


def _key_elsewhere(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    about["keys"]["vault"]["path"] = "../../etc/hostname"


def _other_plan(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    plan = json.loads(files["plan.json"])
    plan["seed"] = 99
    files["plan.json"] = canonical_json(plan)


def _other_plan_facts(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    about["plan"]["fossils"] += 1


def _other_run(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    about["generation"]["run"] = "run-00000000000f"


def _other_week(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    about["name"] = "week-2027-01-04"


def _unsafe_previous(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    about["previous"] = {"name": "../../etc", "release_sha256": "e" * 64}


def _spare_weights(files: dict[str, bytes], about: dict, place: SmallFoundry) -> None:
    files["model/spare.safetensors"] = b"x"


@pytest.mark.parametrize(
    ("change", "file", "what"),
    [
        (_swap_proof, "proof.json", "another statement"),
        (_swap_weights, "model/digests.json", "model.safetensors is not the file"),
        (_swap_config_and_digests, "model/digests.json", "not the files that the statement"),
        (_spare_weights, "model/digests.json", "spare.safetensors is not part"),
        (_better_metrics, "metrics.json", "not those of the signed statement"),
        (_other_fossil, "evidence/fossils.txt", "do not lead to the Merkle root of shard"),
        (_fossil_less, "evidence/fossils.txt", "do not lead"),
        (_fossil_more, "evidence/fossils.txt", "more fossils than the shards hold"),
        (_excluded, "evidence/fossils.txt", "is not excluded as the plan says"),
        (_bad_line, "evidence/fossils.txt", "line 1 is not"),
        (_no_manifest, "evidence/manifests/", "is missing"),
        (_spare_manifest, "evidence/manifests/", "belongs to no shard"),
        (_other_vault_key, "evidence/manifests/", "signed by key"),
        (_wrong_key_id, "keys/", "not the key that the release names"),
        (_key_elsewhere, "keys/", "not a key file"),
        (_other_plan, "plan.json", "not the plan"),
        (_other_plan_facts, "proof.json", "another plan"),
        (_other_run, "proof.json", "about run"),
        (_other_week, "RELEASE.dsse.json", "says that it is of week"),
        (_unsafe_previous, "..", "no acceptable name"),
    ],
)
def test_a_signed_release_that_contradicts_itself_is_refused(
    place: SmallFoundry, release: Path, tmp_path: Path, change: Change, file: str, what: str
) -> None:
    forged = resigned(place, release, tmp_path / "week-forged", change)

    checked = verify_release(forged, place.keys["foundry"].to_pem())

    assert not checked.ok
    assert any(p.file == file and what in p.what for p in checked.problems), checked.problems


def test_repacking_changes_nothing(place: SmallFoundry, release: Path, tmp_path: Path) -> None:
    """The helper above makes good releases of unchanged content: what fails there is the change."""
    again = resigned(place, release, tmp_path / "again", lambda files, about, place: None)

    assert verify_release(again, place.keys["foundry"].to_pem()).problems == []
    assert (again / "RELEASE.json").read_bytes() == (release / "RELEASE.json").read_bytes()


@pytest.mark.parametrize(
    "name", ["../escape", "/etc/passwd", "a//b", "a/./b", "a\\b", "c:evil", "new\nline", ""]
)
def test_names_that_lead_elsewhere_are_refused(
    place: SmallFoundry, release: Path, tmp_path: Path, name: str
) -> None:
    """A signed list may not make the verifier look outside the folder."""
    about = json.loads((release / "RELEASE.json").read_bytes())
    about["files"][name] = {"sha256": "e" * 64, "size_bytes": 1}
    payload = canonical_json(about)
    envelope = place.signer().sign_envelope("application/vnd.scf.release+json", payload)
    (release / "RELEASE.json").write_bytes(payload)
    (release / "RELEASE.dsse.json").write_bytes(canonical_json(envelope.to_json()))

    checked = verify_release(release)

    assert any("is not acceptable" in p.what for p in checked.problems)


def test_the_model_is_part_of_the_claim(place: SmallFoundry, release: Path) -> None:
    """A promoted generation later does not change what was released."""
    before = secrets.token_hex(4)
    (release.parent / before).mkdir()
    promote(place, measured_run(place, number=2, champion_gain=0.2))

    assert verify_release(release).ok


def test_a_large_release_is_hashed_at_disk_speed(place: SmallFoundry, release, tmp_path) -> None:
    """200 MB of weights: well under ten seconds."""
    big = tmp_path / "big.bin"
    with big.open("wb") as file:
        file.truncate(200 * 10**6)
    start = time.process_time()
    verifier.file_sha256(big)
    assert time.process_time() - start < 5
