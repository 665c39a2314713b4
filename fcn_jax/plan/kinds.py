"""Kinds of devices: peak speeds, memory, and connections, as their vendors publish them.

Speeds are dense, without sparsity, where a datasheet has both. A bandwidth of a connection is that
of one direction. Decimal units, as in the datasheets: a GB is 1e9 bytes.

The figures of TPUs were compared with the vendor's pages, docs.cloud.google.com/tpu/docs/v4, /v5e,
/v5p-training and /v6e, and with the tables of jax-ml.github.io/scaling-book/tpus, in December 2026.
`link` of a TPU is the sum over its links, which a ring in each direction of the torus uses: 6 of 45
GB/s (v4) and of 100 GB/s (v5p), 4 of 50 GB/s (v5e) and of 100 GB/s (v6e). Slices without wraparound
connections, such as v5e's and v6e's with less than 16 chips along an axis, have fewer.
"""

from __future__ import annotations

import dataclasses

from fcn_jax.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of device.

    Attributes:
        name: such as "H100".
        platform: "cuda", "tpu" or "cpu", in JAX's names; decides about the forms of operators.
        bfloat16: FLOP/s of products of 16-bit numbers, at peak.
        tf32: FLOP/s of products of float32 numbers at JAX's default precision.
        float32: FLOP/s of products of float32 numbers at precision "highest".
        memory: bytes.
        bandwidth: bytes/s of the memory.
        linked: number of devices that are connected by `link`: of a host with GPUs, of a TPU pod.
        link: bytes/s that a device sends to its neighbors.
        network: bytes/s that a device sends to other hosts or pods: a share of the host's network.
        host: number of devices of a host.
        usable: share of the memory that JAX takes by default.
        sources: where the numbers are from.
    """

    name: str
    platform: str
    bfloat16: float
    tf32: float
    float32: float
    memory: float
    bandwidth: float
    linked: int
    link: float
    network: float
    host: int
    usable: float
    sources: tuple[str, ...]

    def peak(self, dtype: str, precision: str = "default") -> float:
        """Return the peak FLOP/s of a matrix product or convolution.

        Args:
            dtype: of its operands, such as "float32".
            precision: "default", "high" or "highest".
        """
        if dtype in ("bfloat16", "float16"):
            return self.bfloat16
        return self.tf32 if precision == "default" else self.float32


_GPU_SHARE = 0.75
"""JAX takes three quarters of a GPU's memory, unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise
(docs.jax.dev, "GPU memory allocation").
"""


def _gpu(name: str, *, bfloat16: float, tf32: float, float32: float, **rest: object) -> Kind:
    fixed = {"platform": "cuda", "linked": 8, "host": 8, "usable": _GPU_SHARE}
    return Kind(name, bfloat16=bfloat16, tf32=tf32, float32=float32, **fixed | rest)  # type: ignore[arg-type]


def _tpu(name: str, *, bfloat16: float, **rest: object) -> Kind:
    # JAX's default precision on TPUs rounds float32 operands to bfloat16: one pass of the matrix
    # unit. "highest" takes six passes (docs.jax.dev, jax.lax.Precision).
    speeds = {"bfloat16": bfloat16, "tf32": bfloat16, "float32": bfloat16 / 6}
    return Kind(name, platform="tpu", usable=1.0, **speeds | rest)  # type: ignore[arg-type]


KINDS = {
    kind.name: kind
    for kind in (
        _gpu(
            "H100",
            bfloat16=989.4e12,
            tf32=494.7e12,
            float32=66.9e12,
            memory=80e9,
            bandwidth=3350e9,
            link=450e9,
            network=50e9,
            sources=(
                "NVIDIA H100 Tensor Core GPU datasheet, H100 SXM: BF16 1,979 and TF32 989 TFLOPS "
                "with sparsity, twice the dense speed; FP32 67 TFLOPS; 80 GB; 3.35 TB/s; NVLink "
                "900 GB/s, both directions",
                "NVIDIA DGX H100 datasheet: 8 GPUs; a 400 Gb/s ConnectX-7 for each",
            ),
        ),
        _gpu(
            "H200",
            bfloat16=989.4e12,
            tf32=494.7e12,
            float32=66.9e12,
            memory=141e9,
            bandwidth=4800e9,
            link=450e9,
            network=50e9,
            sources=(
                "NVIDIA H200 Tensor Core GPU datasheet, H200 SXM: speeds of the H100 SXM; 141 GB; "
                "4.8 TB/s; NVLink 900 GB/s, both directions",
                "NVIDIA DGX H200 datasheet: 8 GPUs; a 400 Gb/s ConnectX-7 for each",
            ),
        ),
        _gpu(
            "A100",
            bfloat16=312e12,
            tf32=156e12,
            float32=19.5e12,
            memory=80e9,
            bandwidth=2039e9,
            link=300e9,
            network=25e9,
            sources=(
                "NVIDIA A100 Tensor Core GPU datasheet, A100 80GB SXM: BF16 312, TF32 156, FP32 "
                "19.5 TFLOPS, dense; 2,039 GB/s; NVLink 600 GB/s, both directions",
                "NVIDIA DGX A100 datasheet: 8 GPUs; a 200 Gb/s ConnectX-6 for each",
            ),
        ),
        _gpu(
            "A100-40GB",
            bfloat16=312e12,
            tf32=156e12,
            float32=19.5e12,
            memory=40e9,
            bandwidth=1555e9,
            link=300e9,
            network=25e9,
            sources=(
                "NVIDIA A100 Tensor Core GPU datasheet, A100 40GB SXM: as A100; 1,555 GB/s",
                "NVIDIA DGX A100 datasheet: 8 GPUs; a 200 Gb/s ConnectX-6 for each",
            ),
        ),
        _gpu(
            "L4",
            bfloat16=121e12,
            tf32=60e12,
            float32=30.3e12,
            memory=24e9,
            bandwidth=300e9,
            link=32e9,
            network=100e9 / 8 / 8,
            sources=(
                "NVIDIA L4 Tensor Core GPU datasheet: BF16 242 and TF32 120 TFLOPS with sparsity, "
                "twice the dense speed; FP32 30.3 TFLOPS; 24 GB; 300 GB/s; PCIe Gen4 x16, 64 GB/s, "
                "both directions",
                "Google Cloud machine type g2-standard-96: 8 GPUs, 100 Gb/s",
            ),
        ),
        _gpu(
            "T4",
            # No bfloat16 in hardware: its products are computed in float32.
            bfloat16=8.1e12,
            tf32=8.1e12,
            float32=8.1e12,
            memory=16e9,
            bandwidth=320e9,
            link=16e9,
            network=100e9 / 8 / 8,
            sources=(
                "NVIDIA T4 Tensor Core GPU datasheet: FP32 8.1 TFLOPS; 16 GB; 320 GB/s; PCIe Gen3 "
                "x16, 32 GB/s, both directions; tensor cores have FP16, which fcn_jax does not "
                "use, and neither BF16 nor TF32",
                "AWS instance type g4dn.metal: 8 GPUs, 100 Gb/s",
            ),
        ),
        _tpu(
            "TPUv4",
            bfloat16=275e12,
            memory=32 * 2**30,
            bandwidth=1200e9,
            linked=4096,
            link=1.1e15 / 4096,
            network=6.25e9,
            host=4,
            sources=(
                "docs.cloud.google.com/tpu/docs/v4: 275 TFLOPS bf16; 32 GiB; 1200 GB/s; 4096 "
                "chips in a pod, whose all-reduce bandwidth is 1.1 PB/s; 4 chips in a host",
                "How to Scale Your Model (jax-ml.github.io/scaling-book), TPU specs: 6.25 GB/s of "
                "data center network for a chip",
            ),
        ),
        _tpu(
            "TPUv5e",
            bfloat16=197e12,
            memory=16e9,
            bandwidth=819e9,
            linked=256,
            link=51.2e12 / 256,
            network=6.4e12 / 8 / 256,
            host=8,
            sources=(
                "docs.cloud.google.com/tpu/docs/v5e: 197 TFLOPS bf16; 16 GB; 819 GB/s; 256 chips "
                "in a pod, whose all-reduce bandwidth is 51.2 TB/s (400 GB/s for a chip, both "
                "directions) and data center network 6.4 Tb/s; 8 chips and 200 Gb/s in a host",
            ),
        ),
        _tpu(
            "TPUv5p",
            bfloat16=459e12,
            memory=95e9,
            bandwidth=2765e9,
            linked=8960,
            link=600e9,
            network=50e9 / 8,
            host=4,
            sources=(
                "docs.cloud.google.com/tpu/docs/v5p-training: 459 TFLOPS bf16; 95 GB; 2765 GB/s; "
                "8960 chips in a pod; 1200 GB/s between chips, both directions; 50 Gb/s of data "
                "center network for a chip; 4 chips in a host",
            ),
        ),
        _tpu(
            "TPUv6e",
            bfloat16=918e12,
            memory=32e9,
            bandwidth=1638e9,
            linked=256,
            link=102.4e12 / 256,
            network=25.6e12 / 8 / 256,
            host=8,
            sources=(
                "docs.cloud.google.com/tpu/docs/v6e: 918 TFLOPS bf16; 32 GB; 1638 GB/s (1640 or "
                "1600 in other versions of the page); 256 chips in a pod, whose all-reduce "
                "bandwidth is 102.4 TB/s (800 GB/s for a chip, both directions) and data center "
                "network 25.6 Tb/s; 8 chips and 800 Gb/s in a host",
            ),
        ),
    )
}
"""The known kinds by name."""


def find(name: str) -> Kind:
    """Return a kind by its name; case, dashes, underscores and spaces do not matter.

    Raises:
        ConfigError: it is not known. The message names the nearest one and lists all.
    """
    by_short = {_short(known): kind for known, kind in KINDS.items()}
    if _short(name) not in by_short:
        raise ConfigError(f"--kind {name}: unknown kind of device. {did_you_mean(name, KINDS)}")
    return by_short[_short(name)]


def _short(name: str) -> str:
    return "".join(char for char in name.casefold() if char.isalnum())
