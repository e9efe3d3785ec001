"""The static gate: every kernel compiled for every architecture it is meant for, and its machine code looked at.

    python -m gpucnn.bench.gate [--update] [--out build/gate.json]

It needs no GPU. It fails where code spills registers or uses local memory, where the compiler adds waits to a pipeline
of wgmma, where an instruction that a kernel is built around is missing, where products are too small a share of a main
loop, where NVRTC and nvcc of one version compute differently, and where registers, shared memory or the instructions of
a main loop on tensor cores differ from the table bench/gate.json, which --update writes anew.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpucnn.files import write_atomically
from gpucnn.launch import compilers, sources

TABLE = Path(__file__).parent / "gate.json"
COMPARED_WITH_NVCC = ("sm_80", "sm_90a")
# Kernels with a loop that the two compilers unroll differently, so that instructions differ by whole iterations.
UNROLLED_DIFFERENTLY = (
    "local_response_norm_backward_rows",
    *(f"conv2d_backward_input_values_{name}_128x128" for name in ("bfloat16", "float16")),  # divisions of integers
)
# Kernels of which every entry point must hold these instructions on sm_80 and later: entry's first letters → names.
EXPECTED: dict[str, tuple[str, ...]] = {
    **{f"gemm_{layout}_{tile}": ("LDGSTS.E.128",) for layout in ("nn", "tn") for tile in ("32", "64", "128")},
    **{
        f"gemm_{layout}_{form}": ("LDGSTS", "LDS.128", "STG.E.128")
        for layout in ("nn", "nt", "tn")
        for form in ("32", "64", "128", "words_32", "words_64", "words_128", "flush_64", "flush_128")
    },
    **{
        f"gemm_{layout}_{form}": ("LDGSTS", "HMMA", "STG.E.64")
        for layout in ("nn", "nt", "tn")
        for form in ("tf32", "float32_tensor", "words_tf32", "words_float32_tensor", "flush_float32_tensor")
    },
    **{
        f"conv2d_{operation}_{tile}": ("LDGSTS.E.128",)
        for operation in ("forward", "backward_input")
        for tile in ("64", "128")
    },
    **{
        f"conv2d_{operation}_{tile}": ("LDGSTS", "LDS.128", "STG.E.128")
        for operation in ("forward", "backward_input", "backward_weight")
        for tile in ("64x64", "128x128", "128x256", "channels_64", "channels_128")
    },
    **{
        f"conv2d_{operation}_{form}": ("LDGSTS", "HMMA", "STG.E.64")
        for operation in ("forward", "backward_input", "backward_weight", "backward_weight_channels")
        for form in ("tf32", "float32_tensor")
    },
    **{f"{name}_hopper_": ("HGMMA", "UTMALDG", "SYNCS", "UTMASTG") for name in ("gemm_nn", "gemm_nt", "gemm_tn")},
    **{
        f"gemm_{layout}_hopper_{types}_pairs_": ("UTMALDG.MULTICAST", "UCGABAR_WAIT")
        for layout in ("nn", "nt", "tn")
        for types in ("bfloat16_bfloat16", "bfloat16_float", "float16_float16", "float16_float", "tf32_float")
    },
    **{f"conv2d_hopper_{name}_": ("HGMMA", "UTMALDG.IM2COL", "SYNCS", "UTMASTG") for name in ("images", "weights")},
    "conv2d_hopper_phases_": ("HGMMA", "UTMALDG.IM2COL", "SYNCS", "STG.E.128"),
    "conv2d_hopper_planes_": ("HGMMA", "UTMALDG", "SYNCS", "UTMASTG", "LDSM", "STSM"),
    "conv2d_hopper_plane_weights_": ("HGMMA", "UTMALDG", "SYNCS", "UTMASTG"),
    **{
        f"conv2d_hopper_{name}_pairs_": (f"UTMALDG{kind}.MULTICAST", "UCGABAR_WAIT")
        for names, kind in (("images", ""), ("weights", ".IM2COL"))
        for types in ("bfloat16", "float16", "bfloat16_planes", "float16_planes")
        for name in (f"{names}_{types}",)
    },
    "gemm_hopper_float32_tensor_": ("HGMMA", "UTMALDG", "SYNCS", "UTMASTG"),
    "conv2d_hopper_float32_tensor_": ("HGMMA", "UTMALDG", "UTMALDG.IM2COL", "SYNCS", "UTMASTG"),
    "split_terms_hopper": ("LDG.E.128", "STG.E.128"),
    "split_rows_hopper": ("STG.E.128",),
    **{
        f"conv2d_{operation}_{form}": ("LDGSTS.E.128", "LDSM", "HMMA", "STG.E.128")
        for operation in ("forward", "backward_input")
        for form in ("units", "values")
    },
    **{
        f"gemm_{layout}_{form}{type_}": (*copies, "LDSM", "HMMA", "STG.E.128")
        for layout in ("nn", "nt", "tn")
        for form, copies in (("", ("LDGSTS.E.128",)), ("values_", ()))
        for type_ in ("bfloat16", "float16")
    },
    "conv2d_backward_weight_units": ("LDGSTS.E.128", "LDSM", "HMMA", "STG.E.64"),
    "conv2d_backward_weight_values": ("LDSM", "HMMA", "STG.E.64"),
    "winograd4_output": ("STG.E.128",),
    "conv2d_forward_first_layer": ("LDGSTS", "LDS.128", "STG.E.128"),
    "conv2d_forward_depthwise": ("LDG.E.128", "STG.E.128"),
    "conv2d_backward_weight_depthwise": ("LDG.E.128",),
    "conv2d_backward_weight_direct_": ("LDS.128",),
    "fft_tiles_": ("STS.64", "LDS.64", "STG.E.64"),
    "fft_inverse_tiles_": ("LDG.E.64", "STS.64", "LDS.64"),
    "fft_multiply_": ("LDGSTS.E.128", "LDS.128", "STG.E.128"),
    "fft_multiply_float32_tensor_": ("HMMA",),
    "winograd_64x32x8": ("LDGSTS.E.128", "LDS.128", "STS.128", "STG.E.64"),
    "winograd_64x32x4": ("LDG.E.128", "LDS.128", "STS.128", "STG.E.64"),
    "winograd_backward_weight_": ("LDS.128", "STS.128"),
    **{
        f"{name}_{direction}": ("LDG.E.128", "STG.E.128")
        for name in ("relu", "leaky_relu", "elu", "sigmoid", "tanh")
        for direction in ("forward", "backward")
    },
    "add_": ("LDG.E.128", "STG.E.128"),
    "unscale": ("LDG.E.128", "STG.E.128"),
    "cast_float32_": ("LDG.E.128", "STG.E.64"),
    **{f"cast_{name}_float32": ("LDG.E.64", "STG.E.128") for name in ("bfloat16", "float16")},
    **{f"cast_{names}": ("LDG.E.128", "STG.E.128") for names in ("bfloat16_float16", "float16_bfloat16")},
    "dropout": ("LDG.E.128", "STG.E.128"),
    **{f"batch_norm_{name}": ("LDG.E.128",) for name in ("moments", "sums")},
    **{
        f"batch_norm_{name}": ("LDG.E.128", "STG.E.128")
        for name in ("apply", "backward_training", "backward_inference")
    },
    "max_pool2d_forward_vector": ("LDG.E.128",),
    "max_pool2d_backward_vector": ("STG.E.128",),
    "sum_rows": ("LDG.E.128",),
    "sgd_": ("LDG.E.128", "STG.E.128"),
    "adam_update": ("LDG.E.128", "STG.E.128"),
}
DEPTHWISE_FORMS = tuple(f"k{size}s{stride}" for size in (3, 5, 7) for stride in (1, 2))
# Of 16-bit arrays these take fours of values, or pairs, where others take 16 bytes.
EXPECTED_OF_FOURS = {
    "dropout": ("LDG.E.64", "STG.E.64"),
    "batch_norm_apply": ("LDG.E.64", "STG.E.64"),
    **{f"batch_norm_{name}": ("LDG.E.64",) for name in ("moments", "sums")},
    **{f"batch_norm_{name}": ("LDG.E.64", "STG.E.64") for name in ("backward_training", "backward_inference")},
    "max_pool2d_forward_vector": ("LDG.E.64", "STG.E.64"),
    "max_pool2d_backward_vector": ("STG.E.64",),
    **{f"conv2d_forward_depthwise_{form}": ("LDG.E.64", "STG.E.64") for form in DEPTHWISE_FORMS},
    **{f"conv2d_backward_input_depthwise_{form}": ("STG.E.64",) for form in DEPTHWISE_FORMS},
    **{f"conv2d_backward_weight_depthwise_{form}": ("LDG.E.64",) for form in DEPTHWISE_FORMS},
    # Of channels-last images a lane has a pair of channels.
    **{
        f"conv2d_{operation}_depthwise_last_{form}": ("LDG.E", "STG.E")
        for operation in ("forward", "backward_input", "backward_weight")
        for form in DEPTHWISE_FORMS
    },
}
# The least share of multiply-adds, percent, in the main loop of kernels that are products: with 128 float32 lanes a
# multiprocessor it is a ceiling of their speed. On sm_75 copies to shared memory go through registers.
# On tensor cores it is the share of HMMA: one of 16 × 8 × 8 tf32 values takes 8 clocks of a quarter of a multiprocessor
# of sm_80 and 4 of sm_90, and every other instruction takes one to issue.
BUDGETS: dict[str, int] = {
    "gemm_nn_128x128": 90,
    "gemm_nt_128x128": 89,
    "gemm_tn_128x128": 91,
    **{f"gemm_{layout}_words_128x128": 87 for layout in ("nn", "tn")},
    **{f"conv2d_{name}_128x256": 91 for name in ("forward", "backward_input")},
    **{f"conv2d_{name}_128x128": 88 for name in ("forward", "backward_input")},
    **{f"conv2d_{name}_64x64": 82 for name in ("forward", "backward_input")},
    "conv2d_backward_weight_channels_128x256": 89,
    "conv2d_backward_weight_channels_128x128": 84,
    **{f"conv2d_{name}_64x128": 87 for name in ("forward", "backward_input")},
    "conv2d_backward_weight_channels_64x128": 83,
    "conv2d_backward_weight_128x256": 85,
    "conv2d_backward_weight_128x128": 81,
    "conv2d_forward_first_layer": 91,
    **{f"gemm_{layout}_tf32_128x128": 11 for layout in ("nn", "nt", "tn")},
    **{f"gemm_{layout}_float32_tensor_128x128": 14 for layout in ("nn", "nt", "tn", "nt_flush", "tn_flush")},
    **{f"gemm_{layout}_float32_tensor_64x64": 10 for layout in ("nn", "nt", "tn", "nt_flush", "tn_flush")},
    "fft_multiply_float32_tensor_128x64": 18,
    "fft_multiply_float32_tensor_32x32": 12,
}
PRODUCTS = ("HGMMA", "HMMA", "FFMA")  # a kernel's main loop is that with most of the first of these that it has
# What the table keeps of the loops of kernels on tensor cores: of that of products, and of another that copies by TMA.
KEPT = {
    ("HGMMA", "HMMA"): ("HGMMA", "HMMA", "LDSM", "LDS", "LDGSTS", "UTMALDG", "SYNCS", "BAR"),
    ("UTMALDG",): ("UTMALDG", "SYNCS"),
}
# Kernels that may compute in double: batch norm joins means and variances of its parts, a few operations a part; one
# thread computes Adam's numbers.
DOUBLES = ("batch_norm_", "adam_numbers")
INSTRUCTION_BYTES = 16
KINDS_OF_COPIES = ("IM2COL", "MULTICAST")
FLOATING_POINT = ("FFMA", "FADD", "FMUL", "MUFU", "DFMA", "DADD", "DMUL", "F2F", "I2F", "F2I")
COUNTED = re.compile(
    r"^(LDG|STG|LDS|STS|LDGSTS|LDL|STL|FFMA|HMMA|HGMMA|LDSM|STSM|UTMALDG|UTMASTG|SYNCS|UCGABAR|DFMA|DMUL|MUFU|SHFL|BAR|RED|ATOM)"
)


def main(arguments: list[str] | None = None) -> int:
    """Run the gate, print what it finds, write all records; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="gate", description=__doc__.splitlines()[0])
    parser.add_argument("--update", action="store_true", help="write the table anew")
    parser.add_argument("--out", type=Path, default=Path("build/gate.json"), help="where all records go, as JSON")
    options = parser.parse_args(arguments)
    records, faults = inspect_all()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out, json.dumps(records, indent=1).encode())
    if options.update:
        write_atomically(TABLE, format_table(table_of(records)).encode())
    faults += [fault for record in records for fault in record_faults(record)]
    faults += differences(json.loads(TABLE.read_text()), table_of(records))
    print("\n".join(faults) or "nothing to find fault with")
    entry_points = len({record["kernel"] for record in records})
    print(f"gate: {entry_points} entry points, {len(records)} compiled kernels, {len(faults)} faults; {options.out}")
    return bool(faults)


def inspect_all() -> tuple[list[dict[str, Any]], list[str]]:
    """(records of all kernels, differences between the two compilers)."""
    files = sorted(sources.folder().glob("*.cu"))  # the library's, whatever else is registered
    jobs = [(str(file), arch) for file in files for arch in compilers.ARCHITECTURES if sources.suits(file, arch)]
    with ThreadPoolExecutor() as pool:
        records = [record for part in pool.map(lambda job: inspect(*job), jobs) for record in part]
        faults = pool.map(lambda job: compare_compilers(*job), (job for job in jobs if job[1] in COMPARED_WITH_NVCC))
        return records, [fault for part in faults for fault in part]


def inspect(file: str, architecture: str) -> list[dict[str, Any]]:
    """One record a kernel: what it takes of registers and memory, its instructions of interest, and its main loop's."""
    code, log = compilers.cubin(file, architecture, "nvrtc")
    usage, spills, listing = resource_usage(code), spilled_bytes(log), disassemble(code)
    remarks = pipeline_remarks(log)
    return [
        {
            "kernel": kernel,
            "arch": architecture,
            "registers": registers,
            "shared_bytes": shared,
            "spill_bytes": spills.get(kernel, 0),
            "local_bytes": local,
            "instructions": count_instructions(listing[kernel]),
            "main_loop": main_loop(listing[kernel]),
            "tensor_loops": loops_on_tensor_cores(listing[kernel]),
            "remarks": remarks.get(kernel, []),
        }
        for kernel, (registers, shared, local) in usage.items()
    ]


def compare_compilers(file: str, architecture: str) -> list[str]:
    """Where NVRTC and nvcc of one version compute differently: by other floating-point instructions, or more of them.

    Their order and the arithmetic of addresses may differ: nvcc keeps addresses of shared memory in 32 bits where NVRTC
    keeps them in 64.
    """
    if not compilers.nvcc_version().startswith(compilers.nvrtc_version() + "."):
        return []
    one, other = (disassemble(compilers.cubin(file, architecture, name)[0]) for name in compilers.COMPILERS)
    compared = [kernel for kernel in one if kernel not in UNROLLED_DIFFERENTLY]
    different = [kernel for kernel in compared if arithmetic(one[kernel]) != arithmetic(other.get(kernel, []))]
    return [f"{kernel}, {architecture}: nvcc and NVRTC compute differently" for kernel in different]


def arithmetic(listing: list[str]) -> Counter[str]:
    """How often each floating-point instruction stands in the code; its name decides how it rounds."""
    names = (re.sub(r"^@!?U?P\w+ ", "", line).split()[0] for line in listing)
    return Counter(name for name in names if name.startswith(FLOATING_POINT))


def _cuobjdump(code: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [compilers.find_tool("cuobjdump"), option, file.name]
        # cuobjdump runs nvdisasm, which it looks for on PATH
        path = str(Path(compilers.find_tool("nvdisasm")).parent)
        result = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": path})
        return result.stdout


def resource_usage(code: bytes) -> dict[str, tuple[int, int, int]]:
    """kernel → (registers, bytes of static shared memory, bytes of local memory)."""
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)"
    found = re.findall(pattern, _cuobjdump(code, "-res-usage"))
    return {
        name: (int(registers), int(shared), int(stack) + int(local)) for name, registers, stack, shared, local in found
    }


def spilled_bytes(log: str) -> dict[str, int]:
    """kernel → bytes of spill stores and loads, from what ptxas says."""
    pattern = r"Function properties for (\w+)\s+ptxas\s+\.\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+)"
    alternative = r"Function properties for (\w+)\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+)"
    found = re.findall(pattern, log) or re.findall(alternative, log)
    return {kernel: int(stores) + int(loads) for kernel, stores, loads in found}


def pipeline_remarks(log: str) -> dict[str, list[str]]:
    """kernel → what ptxas says of wgmma and setmaxnreg that it does not translate as they stand, C7505 to C7520.

    It waits where the source does not, or ignores the number of registers. The compilers call that information.
    """
    found: dict[str, list[str]] = {}
    for text, kernel in re.findall(r"(\(C75\d\d\)[^\n]*?)(?: in function '(\w+)'|\n|$)", log):
        found.setdefault(kernel, []).append(text)
    return found


def disassemble(code: bytes) -> dict[str, list[str]]:
    """kernel → its machine instructions, as text without addresses and encodings."""
    listing: dict[str, list[str]] = {}
    for part in _cuobjdump(code, "-sass").split("Function : ")[1:]:
        name, _, body = part.partition("\n")
        listing[name.strip()] = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.+?) ;", body)
    return listing


def count_instructions(listing: list[str]) -> dict[str, int]:
    """How often the instructions of COUNTED stand in the code, by their whole names (LDG.E.128, not LDG)."""
    names = (re.sub(r"^@!?U?P\w+ ", "", line).split()[0] for line in listing)
    return dict(sorted(Counter(_width(name) for name in names if COUNTED.match(name)).items()))


def loops(listing: list[str]) -> list[tuple[int, int]]:
    """(first, last) instruction of every loop: from where a branch leads back to, to the branch."""
    jumps = ((re.search(r"\bBRA\b.*?0x([0-9a-f]+)", line), i) for i, line in enumerate(listing))
    found = ((int(jump[1], 16) // INSTRUCTION_BYTES, i) for jump, i in jumps if jump)
    return [(first, last) for first, last in found if first <= last]


def main_loop(listing: list[str], products: tuple[str, ...] = PRODUCTS) -> dict[str, int]:
    """Instructions by kind, and in all, of the innermost loop with the most of the first of `products` that loops have.

    Empty where there is none. Where several have as many, it is the shortest: a product's loop for whole tiles, not the
    one for what is left over.
    """
    kinds = [re.sub(r"^@!?U?P\w+ ", "", line).split()[0].split(".")[0] for line in listing]
    every = loops(listing)
    for product in products:
        spans = [(first, last) for first, last in every if product in kinds[first : last + 1]]
        inner = [span for span in spans if not any(other != span and _inside(other, span) for other in spans)]
        # A wait that the compiler put behind the kernel's end leads back into a loop, and is none of its own.
        inner = [(first, last) for first, last in inner if "EXIT" not in kinds[first : last + 1]] or inner
        if inner:
            first, last = max(inner, key=lambda span: (kinds[span[0] : span[1] + 1].count(product), span[0] - span[1]))
            return {"instructions": last + 1 - first, **dict(Counter(kinds[first : last + 1]).most_common())}
    return {}


def _inside(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= one[0] and one[1] <= other[1]


def loops_on_tensor_cores(listing: list[str]) -> str:
    """The mix of instructions that the table keeps: "96 HMMA, 51 LDS, 16 LDGSTS of 611"; empty for other kernels."""
    texts: list[str] = []
    seen: list[dict[str, int]] = [{}]
    for products, kept in KEPT.items():
        loop = main_loop(listing, products)
        if loop not in seen:
            texts.append(
                ", ".join(f"{loop[kind]} {kind}" for kind in kept if kind in loop) + f" of {loop['instructions']}"
            )
            seen.append(loop)
    return "; ".join(texts)


def _width(name: str) -> str:
    """The name with its width and kind, without caching hints: LDG.E.128.CONSTANT → LDG.E.128."""
    parts = [
        part for part in name.split(".") if part in ("E", "64", "128", *KINDS_OF_COPIES) or part == name.split(".")[0]
    ]
    return ".".join(parts)


def record_faults(record: dict[str, Any]) -> list[str]:
    """What is wrong with one kernel, whatever the table says."""
    where, instructions = f"{record['kernel']}, {record['arch']}", record["instructions"]
    faults = [f"{where}: {name} is {record[name]}" for name in ("spill_bytes", "local_bytes") if record[name]]
    faults += [f"{where}: {remark}" for remark in record.get("remarks", [])]
    unwanted = ("LDL", "STL") if record["kernel"].startswith(DOUBLES) else ("LDL", "STL", "DFMA", "DMUL")
    faults += [f"{where}: {instructions[name]} {name}" for name in instructions if name.startswith(unwanted)]
    if record["arch"] == "sm_75":
        return faults
    faults += [f"{where}: {text}" for text in over_budget(record)]
    name, _, type_name = record["kernel"].rpartition("_")
    if type_name in ("bfloat16", "float16") and name in EXPECTED_OF_FOURS:
        expected: list[tuple[str, ...]] = [EXPECTED_OF_FOURS[name]]
    else:
        expected = [names for start, names in EXPECTED.items() if record["kernel"].startswith(start)]
    missing = [name for names in expected for name in names if not any(name in found for found in instructions)]
    return faults + [f"{where}: no {name}, which the kernel is built around" for name in missing]


def over_budget(record: dict[str, Any]) -> list[str]:
    """Where products are a smaller share of the main loop than BUDGETS has."""
    least = [share for start, share in BUDGETS.items() if record["kernel"].startswith(start)]
    loop = record.get("main_loop") or {}
    product = next((kind for kind in PRODUCTS if kind in loop), "FFMA")
    count, every = loop.get(product, 0), loop.get("instructions", 1)
    return [
        f"{count} of {every} instructions of the main loop are {product}, {100 * count / every:.1f}%; at least {share}%"
        for share in least
        if 100 * count < share * every
    ]


def table_of(records: list[dict[str, Any]]) -> dict[str, dict[str, list[Any]]]:
    """kernel → architecture → [registers, bytes of static shared memory, `loops_on_tensor_cores` if there are any]."""
    table: dict[str, dict[str, list[Any]]] = {}
    for record in records:
        row = [record["registers"], record["shared_bytes"]] + [text for text in [record["tensor_loops"]] if text]
        table.setdefault(record["kernel"], {})[record["arch"]] = row
    return dict(sorted(table.items()))


def format_table(table: dict[str, Any]) -> str:
    """JSON with a line a kernel."""
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in table.items()) + "\n}\n"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What changed against the table, which --update accepts."""
    changed = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return [
        f"{name}: the table has {old.get(name)}, the code {new.get(name)}; --update if that is right"
        for name in changed
    ]


if __name__ == "__main__":
    sys.exit(main())
