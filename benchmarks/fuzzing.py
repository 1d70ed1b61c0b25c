"""Whether anything in a mutated dump or archive ends more than itself: no crash, and every dump kept, merged, or dropped for a reason.

    python benchmarks/fuzzing.py --mutations 100000
    python benchmarks/fuzzing.py --mutations 2000 --first_seed 7

Takes shipped measurements in every format that is read, and damages them: bits flipped, cut off, spliced, numbers and lengths replaced,
tokens of JSON swapped for others, headers of archives changed with their checksums made right again. Each batch is read as
generate_dataset.py reads a folder, and its numbers are checked: read = kept + merged + dropped, and no input without an outcome.
Writes benchmarks/results/fuzzing.md and .json as it goes. A batch depends on its seed alone: batch B of a kind has first_seed + B.
"""

import bz2
import contextlib
import functools
import gzip
import io
import itertools
import lzma
import re
import resource
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pandas as pd
from joblib import Parallel, delayed
from pydantic import Field

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import common

import data_utils
from config import Config, load_config, run_script
from dumps import own
from dumps.companions import HASH
from dumps.files import iter_dumps, read_bytes
from dumps.parsing import stable_hash
from features import OPS, SCHEDULE_FEATURES, STAGE_BYTES
from measuring.fan_out import fan_out

BATCH = 200  # inputs in a folder that is read at once
SEED_DUMPS = 4  # measurements that inputs are made of; few and small, as size adds time and nothing new
MOST_STAGES = 8
BENCH = b"Benchmark for x produces best case of 0.00123 sec/iter (over 9 samples, 90 iterations, accuracy 1.2%).\n"
NUMBERS = [0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7F800000, 0x7FC00000, 0xFF800000]
# What takes the place of a value in JSON; the second ones make it none, or none that every parser takes.
VALUES = [
    b'"NaN"',
    b"null",
    b"true",
    b"{}",
    b"[]",
    b"-1",
    b"0",
    b"1e14",
    b"1e300",
    b"9" * 25,
    b'"' + b"x" * 300 + b'"',
    b'1,"value":2',
    b'" 3 "',
]
BREAKING = [
    b"NaN", b"Infinity", b"1e999", b"1" + b"0" * 400, b"1" * 5000, b'"\\ud800"', b'"\xff"', b"[" * 3000, b"[" * 900 + b"]" * 900,
    b'{"a":' * 900 + b"1" + b"}" * 900, b"1_0", b"",
]  # fmt: skip
TOKENS = [*VALUES * 6, *BREAKING]
JSON_TOKEN = re.compile(rb'("[^"]*")(?=\s*:)|"[^"]*"|-?\d[\d.]*(?:[eE][-+]?\d+)?|true|false|null')
KEYS_SHARE = 0.1  # of the tokens that are swapped


class FuzzingConfig(Config):
    mutations: int = Field(100000, ge=1, description="inputs to make, over all kinds")
    first_seed: int = Field(0, ge=0, description="of the first batch")


# What inputs are made of


def json_dump(sample):
    """A JSON dump with the schedule features of a `.sample`."""
    stages = np.frombuffer(sample[:-12], "<f4").reshape(-1, 326)
    entries = [
        {"Name": f"f{i}", "Details": {"scheduling_feature": dict(zip(SCHEDULE_FEATURES, row[:39].tolist()))}}
        for i, row in enumerate(stages)
    ]
    details = {"Op histogram": [f"  {op}:   1" for op in OPS], "Memory access patterns": [f"  {p}:   1 0 0 1" for p in range(4)]}
    nodes = [{"Name": entry["Name"], "Details": details} for entry in entries]
    runtime = {"name": "total_execution_time_ms", "value": float(np.frombuffer(sample, "<f4", 1, len(sample) - 12)[0])}
    return orjson.dumps({"programming_details": {"Nodes": nodes, "Edges": []}, "scheduling_data": [*entries, runtime]})


def own_dump(sample):
    """A dump in the project's own format with the program of a `.sample`."""
    n_stages = len(sample) // STAGE_BYTES
    program = own.Program.of_featurization(sample[:-12], [f"f{i}" for i in range(n_stages)], {"exp": [1] * n_stages})
    counts, hash_ = {"stores": [3] * n_stages}, stable_hash(sample)
    return own.write(own.OwnDump(program, hash_, "names numbered", counts, '{"outputs":["f0"],"funcs":{}}', "mutated", 1.5, [1.5, 1.6]))


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(files, compression):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def seed_samples(raw_path):
    """The contents of a few small `.sample` files."""
    small = (dump for dump in iter_dumps(raw_path) if dump.file.endswith(".sample"))
    contents = (data for data in map(read_bytes, small) if len(data) <= MOST_STAGES * 1304 + 12)
    return list(itertools.islice(contents, SEED_DUMPS))


def seed_inputs(samples):
    """{kind: {file name: contents}}: what lies in the folder of an input of each kind. The first file is the one that is mutated."""
    sample, stages = samples[0], len(samples[0]) // 1304
    companions = {
        "program.json": orjson.dumps({"calls": {"exp": [1] * stages}, "candidates": {"0": {"origin": "mutated", "outcome": "measured"}}}),
        "collection.json": orjson.dumps({"name": "x", "machine": {"processor": "p", "cores": 2, "target": "t", "threads": 2}}),
        "000.lowered.json": orjson.dumps({"body_cycles": [3] * stages, HASH: f"{7:016x}"}),
    }
    members = {f"x/p/{name}": data for name, data in companions.items()}
    members |= {f"x/p/{i:03d}.sample": data for i, data in enumerate(samples)}
    members |= {"x/q/x.featurization": sample[:-12], "x/q/bench.txt": BENCH, "x/q/y.json": json_dump(samples[-1])}
    members |= {"x/p/009.schedule.json": own_dump(sample)}
    tar, featurization, dump = tar_of(members), {"x.featurization": sample[:-12]}, json_dump(sample)
    of_companions = {name: {name: data, "000.sample": sample} for name, data in companions.items()}
    return {
        ".sample": {"000.sample": sample},
        ".featurization": {**featurization, "bench.txt": BENCH},
        "bench.txt": {"bench.txt": BENCH, **featurization},
        ".json": {"x.json": dump},
        ".schedule.json": {"000.schedule.json": own_dump(sample), "001.sample": sample},
        "without suffix": {"x": sample},
        **of_companions,
        ".sample.gz": {"x.sample.gz": gzip.compress(sample, mtime=0)},
        ".json.xz": {"x.json.xz": lzma.compress(dump, preset=0)},
        ".schedule.json.xz": {"x.schedule.json.xz": lzma.compress(own_dump(sample), preset=0)},
        ".tar": {"x.tar": tar},
        ".tar.gz": {"x.tar.gz": gzip.compress(tar, 1, mtime=0)},
        ".tar.xz": {"x.tar.xz": lzma.compress(tar, preset=0)},
        ".tar.bz2": {"x.tar.bz2": bz2.compress(tar)},
        "tar in .xz, made right": {"x.tar.xz": tar},  # mutated, then compressed
        "tar, headers made right": {"x.tar": tar},
        ".zip, deflated": {"x.zip": zip_of(members, zipfile.ZIP_DEFLATED)},
        ".zip, stored": {"x.zip": zip_of(members, zipfile.ZIP_STORED)},
        ".zip, lzma": {"x.zip": zip_of(members, zipfile.ZIP_LZMA)},
        ".zip, headers": {"x.zip": zip_of(members, zipfile.ZIP_STORED)},
    }


# Mutations


def flip_bits(data, rng, _):
    for at in rng.integers(0, len(data), rng.integers(1, 9)):
        data[at] ^= 1 << rng.integers(0, 8)


def cut_off(data, rng, _):
    del data[rng.integers(0, len(data)) :]


def take_out(data, rng, _):
    at = rng.integers(0, len(data))
    del data[at : at + rng.integers(1, 2000)]


def splice(data, rng, other):
    at, begin = rng.integers(0, len(data) + 1), rng.integers(0, len(other))
    data[at:at] = other[begin : begin + rng.integers(1, 2000)]


def repeat(data, rng, _):
    at = rng.integers(0, len(data))
    data[at:at] = data[at : at + rng.integers(1, 2000)] * int(rng.integers(1, 4))


def replace_number(data, rng, _):
    size = int(rng.choice([1, 2, 4, 8]))
    at = int(rng.integers(0, max(len(data) - size, 1))) // size * size
    data[at : at + size] = struct.pack("<Q", NUMBERS[rng.integers(0, len(NUMBERS))] * (1 if rng.random() < 0.7 else 0x100000001) % 2**64)[
        :size
    ]


def swap_tokens(data, rng, _):
    before, are_keys = bytes(data), rng.random() < KEYS_SHARE
    tokens = [token.span() for token in JSON_TOKEN.finditer(before) if bool(token[1]) == are_keys]
    if not tokens:
        return flip_bits(data, rng, None)
    for begin, end in sorted({tokens[i] for i in rng.integers(0, len(tokens), rng.integers(1, 4))}, reverse=True):
        other = tokens[rng.integers(0, len(tokens))]
        data[begin:end] = TOKENS[rng.integers(0, len(TOKENS))] if rng.random() < 0.5 else before[slice(*other)]


def change_tar_header(data, rng, _):
    """One field of one member's header replaced, and its checksum made right."""
    block = 512 * int(rng.choice(tar_headers(bytes(data))))
    fields = [
        (0, 100),
        (100, 8),
        (108, 8),
        (124, 12),
        (124, 12),
        (136, 12),
        (156, 1),
        (156, 1),
        (157, 100),
        (257, 8),
        (345, 155),
        (386, 97),
        (483, 12),
    ]
    at, size = fields[rng.integers(0, len(fields))]
    values = [
        b"\0" * size, b"\xff" * size, b"\x80" + b"\xff" * (size - 1), b"\x80" + bytes(max(size - 2, 0)) + b"\x10", b"7" * size, b"0" * size,
        b"-1", b" " * size, bytes([int(rng.choice(list(b"0123456789LKSxgXDMNV\0")))]), rng.bytes(size), b"/" * size, b"x/../" * (size // 5),
    ]  # fmt: skip
    value = values[rng.integers(0, len(values))][:size]
    data[block + at : block + at + len(value)] = value
    data[block + 148 : block + 156] = b" " * 8
    data[block + 148 : block + 156] = b"%06o\0 " % (sum(data[block : block + 512]) % 8**6)


def tar_headers(data):
    """Numbers of the blocks that are headers."""
    return [at // 512 for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"] or [0]


def change_zip_header(data, rng, _):
    """One field of one of the headers replaced."""
    headers = [(found.start(), found[0]) for found in re.finditer(rb"PK(\x01\x02|\x03\x04|\x05\x06)", bytes(data))]
    begin, magic = headers[rng.integers(0, len(headers))]
    size = {b"PK\x01\x02": 46, b"PK\x03\x04": 30, b"PK\x05\x06": 22}[magic]
    at, width = begin + int(rng.integers(4, size)), int(rng.choice([1, 2, 4]))
    data[at : at + width] = struct.pack("<Q", NUMBERS[rng.integers(0, len(NUMBERS))])[:width]


CHANGING_SIZES = [cut_off, take_out, splice, repeat]
ANYWHERE = [*CHANGING_SIZES, *[flip_bits] * 4, *[replace_number] * 4]


def mutations_of(kind):
    """The functions (data, rng, other data) of which an input of this kind gets one to three."""
    if "made right" in kind:
        return [change_tar_header, change_tar_header, change_tar_header, splice, flip_bits]
    if kind == ".zip, headers":
        return [change_zip_header]
    if "json" in kind and not kind.endswith(".xz"):
        return [*CHANGING_SIZES, flip_bits, *[swap_tokens] * 25]
    return [*ANYWHERE, *[swap_tokens] * 6] if kind == "bench.txt" else ANYWHERE


def mutated(kind, files, rng, others):
    """`files` with the first of them mutated."""
    name, contents = next(iter(files.items()))
    data, functions = bytearray(contents), mutations_of(kind)
    for _ in range(rng.integers(1, 4)):
        if data:
            functions[rng.integers(0, len(functions))](data, rng, others[rng.integers(0, len(others))])
    data = lzma.compress(bytes(data), preset=0) if kind == "tar in .xz, made right" else bytes(data)
    return {**files, name: data}


# Reading them


def read_folder(folder):
    """(read, DataFrame of what is usable, DataFrame of what is dropped, {folder of an input}) as generate_dataset.py reads."""
    usable, reasons, inputs, n_read = [], [], set(), 0
    for chunk in data_utils.chunks(iter_dumps(str(folder))):
        inputs |= {dump.file.split("/")[0] for dump in chunk}
        collections = [dump.collection for dump in chunk]
        results, features = data_utils.parse_chunk(chunk, 1e5)
        assert len(results) == len(chunk) and len(features) == sum(value[0] for _, row, value in results if row) * data_utils.STAGE_SIZE
        for collection, (_, row, value) in zip(collections, results):
            n_read += 1
            if row is None:
                reasons.append(value[0])
            else:
                usable.append((hash(collection), *row, n_read))
    rows = pd.DataFrame(usable, columns=["collection", *data_utils.ROW_COLUMNS, "label"])
    return n_read, rows, reasons, inputs


def fuzz_batch(kind, files, others, seed, n):
    """Counts of `n` mutated inputs of a kind: {read, kept, merged, dropped, without_outcome, seconds, reasons, crashes: [text]}."""
    rng, crashes = np.random.default_rng([seed, *kind.encode()]), []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(n):
            own = Path(folder, f"{i:04d}")
            own.mkdir()
            for name, data in mutated(kind, files, rng, others).items():
                (own / name).write_bytes(data)
        began = time.perf_counter()
        try:
            n_read, rows, reasons, inputs = read_folder(folder)
        except Exception:  # what is looked for: each input by itself tells whose it is
            n_read, rows, reasons, inputs = 0, pd.DataFrame(), [], set()
            for own in sorted(Path(folder).iterdir()):
                try:
                    read_folder(own)
                except Exception:
                    crashes.append(f"{kind}, seed {seed}, input {own.name}: {traceback.format_exc()[-1500:]}")
            crashes = crashes or [f"{kind}, seed {seed}: {traceback.format_exc()[-1500:]}"]
    kept = len(data_utils.merge_duplicates(rows.copy())) if len(rows) else 0
    assert crashes or n_read == kept + (len(rows) - kept) + len(reasons)
    return {
        "inputs": n, "read": n_read, "kept": kept, "merged": len(rows) - kept, "dropped": len(reasons), "reasons": Counter(reasons),
        "without_outcome": 0 if crashes else n - len(inputs), "seconds": time.perf_counter() - began, "crashes": crashes,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }  # fmt: skip


def tasks(kinds, mutations, first_seed):
    """(kind, seed, inputs) of each batch, the kinds interleaved."""
    share, left = -(-mutations // len(kinds)), mutations
    for batch, begin in enumerate(range(0, share, BATCH)):
        for kind in kinds:
            n = min(BATCH, share - begin, left)
            if n > 0:
                left -= n
                yield kind, first_seed + batch, n


def write_table(found, first_seed):
    """The table so far, of {kind: counts}."""
    header = ["kind of input", "mutations", "dumps read", "kept", "merged", "dropped", "reasons", "without outcome", "crashes"]
    total = functools.reduce(add_up, found.values(), None)
    rows = []
    for kind, counts in [*found.items(), ("**all**", total)]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in counts["reasons"].most_common())
        numbers = [f"{counts[key]:,}" for key in ("inputs", "read", "kept", "merged", "dropped")]
        rows.append([kind, *numbers, reasons or "-", counts["without_outcome"], len(counts["crashes"])])
    facts = {"first_seed": first_seed, "peak_mb": total["peak_mb"], "seconds": total["seconds"], "crashes": total["crashes"]}
    common.write("fuzzing", header, rows, facts)


def add_up(a, b):
    """Two counts of fuzz_batch as one."""
    return b if a is None else {key: max(a[key], b[key]) if key == "peak_mb" else a[key] + b[key] for key in a}


def fuzz(config, each=lambda found: None):
    """{kind: counts} of `config.mutations` inputs; `each` is called with them now and then."""
    inputs, found = seed_inputs(seed_samples(config.raw_path)), {}
    others = [data for files in inputs.values() for data in files.values()]
    plan = list(tasks(list(inputs), config.mutations, config.first_seed))
    with fan_out(config) as n_jobs, contextlib.ExitStack() as stack:
        parallel = stack.enter_context(Parallel(n_jobs, return_as="generator"))
        results = parallel(delayed(fuzz_batch)(kind, inputs[kind], others, seed, n) for kind, seed, n in plan)
        for i, ((kind, _, _), counts) in enumerate(zip(plan, results), 1):
            found[kind] = add_up(found.get(kind), counts)
            if i % len(inputs) == 0 or i == len(plan):
                each(found)
    return found


def main():
    config = load_config(FuzzingConfig)
    found = fuzz(config, lambda found: write_table(found, config.first_seed))
    crashes = [crash for counts in found.values() for crash in counts["crashes"]]
    for crash in crashes[:5]:
        print(crash, file=sys.stderr)
    sys.exit(1 if crashes else 0)


if __name__ == "__main__":
    run_script(main)
