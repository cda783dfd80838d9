"""Where the benchmark sets are and how to read them.

A set has a name such as ``dipeptides/train``. Its file is looked for among the data shipped with farfield
(``demo/train``), then in ``$FARFIELD_DATA``, else in ``<repository root>/../shared/data``. Where it is not found, the
error names the public source and its licence.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class DataSet:
    """One set of the registry.

    Attributes
    ----------
    name
        Name by which configurations and commands call it.
    file
        Path below the data directory.
    source
        Public source (repository and commit).
    licence
        Licence of the source.
    level
        Level of theory of the labels.
    content
        What is in it.
    columns
        Column names that differ from the defaults of `farfield.datasets.dataset.Columns`.
    units
        Units that differ from farfield's own.
    """

    name: str
    file: str
    source: str
    licence: str
    level: str
    content: str
    columns: dict[str, str] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)


_CACE_LR_FIT = "https://github.com/BingqingCheng/cace-lr-fit at commit d7bd8c8"
_LES_FIT = "https://github.com/ChengUCB/les_fit at commit f9937a5"
_PHONOPY = "https://github.com/phonopy/phono3py at commit 2dc8200"
_N2P2 = "https://github.com/CompPhysVienna/n2p2 at commit 61daa0d"
_GPUMD = "https://github.com/brucefan1983/GPUMD at commit d98135d"
_ALLEGRO_POL = "https://github.com/mir-group/allegro-pol at commit 7748968"
_LES_BEC = "https://github.com/BingqingCheng/LES-BEC at commit 13cf1f0"
_TENSOAP = "https://github.com/dilkins/TENSOAP at commit 7ee93d0"

_SETS = (
    DataSet(
        "dipeptides/train",
        "01_dipeptides/train.extxyz.gz",
        _CACE_LR_FIT,
        "CC BY-NC 4.0 (underlying SPICE: CC0)",
        "wB97M-D3(BJ)/def2-TZVPPD, formation energies",
        "495 polar dipeptides, C H N O, with dipoles and MBIS charges",
    ),
    DataSet(
        "dipeptides/val",
        "01_dipeptides/val.extxyz.gz",
        _CACE_LR_FIT,
        "CC BY-NC 4.0 (underlying SPICE: CC0)",
        "wB97M-D3(BJ)/def2-TZVPPD, formation energies; Born charges PySCF at def2-SVP",
        "55 polar dipeptides, C H N O, with dipoles, quadrupoles, MBIS charges and Born charges",
    ),
    DataSet(
        "spice/bec",
        "02_spice_bec/spice_bec_dev.extxyz.gz",
        _LES_FIT,
        "CC BY-NC 4.0 (SPICE: CC0)",
        "wB97M-D3(BJ)/def2-TZVPPD, total energies",
        "278 neutral molecules and clusters with dipoles and Born charges",
    ),
    DataSet(
        "water/rpbe-d3",
        "03_water_rpbe_d3/water64_EF.extxyz.gz",
        _LES_FIT,
        "CC BY-NC 4.0",
        "RPBE-D3",
        "37 frames of 64 water molecules, correlated",
    ),
    DataSet(
        "water/rpbe-d3-bec",
        "03_water_rpbe_d3/water128_BEC_dev.extxyz.gz",
        "https://github.com/pschienbein/AtomicPolarTensor at commit 1ebc65c",
        "GPL-3.0",
        "RPBE-D3",
        "5 frames of 128 water molecules with Born charges only",
    ),
    DataSet(
        "water/pbe0ts",
        "04_water_pbe0ts/water64.extxyz.gz",
        "https://github.com/deepmodeling/deepmd-kit at commit bc902da, examples/water/data",
        "LGPL-3.0",
        "PBE0-TS",
        "308 frames of 64 water molecules, one trajectory, shuffled: scripts/order_trajectory.py puts it in order",
    ),
    DataSet(
        "water/wannier",
        "05_water_wannier/water128_set1.extxyz.gz",
        _GPUMD,
        "GPL-3.0",
        "not stated (SCAN-like)",
        "43 frames of 128 water molecules with stress and Wannier dipoles",
    ),
    DataSet("ionic/NaCl", "06_ionic/NaCl_rd_2x2x2.extxyz.gz", _PHONOPY, "BSD-3", "PBEsol", "80 frames of 64 atoms"),
    DataSet("ionic/MgO", "06_ionic/MgO_rd_2x2x2.extxyz.gz", _PHONOPY, "BSD-3", "not stated", "80 frames of 64 atoms"),
    DataSet(
        "ionic/KCl",
        "06_ionic/KCl_rd_2x2x2_dmin1.9.extxyz.gz",
        "https://github.com/phonopy/phonopy at commit 3a3e0f0",
        "BSD-3",
        "not stated",
        "42 frames of 64 atoms",
    ),
    DataSet(
        "oxides/SiO2",
        "07_oxides_bec/SiO2.extxyz.gz",
        _ALLEGRO_POL,
        "MIT",
        "PBE, finite field",
        "150 frames of 72 atoms with stress, Born charges and polarizabilities",
    ),
    DataSet(
        "oxides/BaTiO3",
        "07_oxides_bec/BaTiO3.extxyz.gz",
        _ALLEGRO_POL,
        "MIT",
        "PBE, finite field",
        "53 frames of 135 atoms with stress, Born charges and polarizabilities",
    ),
    DataSet(
        "dimers/lode",
        "08_dimers/lode6_train.extxyz",
        f"{_CACE_LR_FIT}, fit-lode; https://github.com/lab-cosmo/atomistic-cookbook at commit d50df71",
        "CC BY-NC 4.0; BSD-3",
        "DFT, level not stated; periodic, L = 30 Å, charged cells in a neutralising background",
        "6 pairs of charged, polar and apolar molecules (labels CC CA PA CP PP AA) at 10 distances each",
    ),
    DataSet(
        "dimers/charge-charge",
        "08_dimers/charge_charge.extxyz.gz",
        f"{_CACE_LR_FIT}, fit-lode; https://github.com/lab-cosmo/atomistic-cookbook at commit d50df71",
        "CC BY-NC 4.0; BSD-3",
        "DFT, level not stated; periodic, L = 30 Å",
        "8 pairs of ions at 13 distances each",
    ),
    DataSet(
        "carbon-chains",
        "09_carbon_chains/C10H2_C10H3plus.extxyz",
        _N2P2,
        "GPL-3.0",
        "FHI-aims PBE",
        "50 C10H2 and 46 C10H3+ with Hirshfeld charges",
        columns={"charges": "ref_charges"},
    ),
    DataSet(
        "au-mgo",
        "10_au_mgo/AuMgO_18frames.extxyz.gz",
        _N2P2,
        "GPL-3.0",
        "FHI-aims PBE",
        "18 frames of Au2 on pure and doped MgO(001), 110 atoms",
        columns={"charges": "ref_charges"},
    ),
    DataSet(
        "water/hdnnp",
        "11_water_hdnnp/H2O_RPBE-D3_FHIaims_20.extxyz.gz",
        _N2P2,
        "GPL-3.0",
        "FHI-aims RPBE-D3",
        "20 frames of 16 to 64 water molecules",
    ),
    DataSet(
        "superionic/2gcc",
        "12_superionic_water/2gcc_2000K.extxyz.gz",
        _LES_BEC,
        "none stated",
        "VASP PBE, 400 eV: energies, forces and stress are not converged in the basis",
        "40 frames of 162 atoms with Born charges",
    ),
    DataSet(
        "superionic/4gcc",
        "12_superionic_water/4gcc_1000K.extxyz.gz",
        _LES_BEC,
        "none stated",
        "VASP PBE, 400 eV: energies, forces and stress are not converged in the basis",
        "77 frames of 162 atoms with Born charges",
    ),
    DataSet(
        "water-gas/monomer",
        "13_water_gas_alpha/water_monomer.extxyz.gz",
        _TENSOAP,
        "LGPL-3.0",
        "CCSD/d-aug-cc-pVTZ per the paper",
        "797 molecules with dipoles and polarizabilities, no forces",
    ),
    DataSet(
        "water-gas/dimer",
        "13_water_gas_alpha/water_dimer.extxyz.gz",
        _TENSOAP,
        "LGPL-3.0",
        "CCSD/d-aug-cc-pVTZ per the paper",
        "800 dimers with dipoles and polarizabilities, no forces",
    ),
    DataSet(
        "water-gas/zundel",
        "13_water_gas_alpha/water_zundel.extxyz.gz",
        _TENSOAP,
        "LGPL-3.0",
        "CCSD/d-aug-cc-pVTZ per the paper",
        "800 Zundel cations with dipoles and polarizabilities, no forces",
    ),
    *(
        DataSet(
            f"demo/{part}",
            f"demo/{part}.extxyz.gz",
            "shipped with farfield; made by scripts/make_demo_data.py",
            "MIT",
            "RHF/6-31G* (PySCF) at geometries from GFN2-xTB; energies relative to the relaxed molecules",
            content,
            columns={"charges": "esp_charges"},
        )
        for part, content in (
            ("train", "dimers of ions and polar molecules up to 10 Å, molecules, small clusters: energies, forces"),
            ("val", "as demo/train"),
            ("test", "dissociation curves up to 15 Å, dimers, clusters: also dipoles, Born and ESP charges"),
        )
    ),
    DataSet("PbTe", "20_PbTe/PbTe_250.extxyz.gz", _GPUMD, "GPL-3.0", "DFT", "25 frames of 250 atoms"),
)

#: All registered sets by name.
DATASETS: dict[str, DataSet] = {entry.name: entry for entry in _SETS}


def data_directories() -> list[Path]:
    """Directories in which data are looked for, in order.

    The data shipped with farfield come first, then ``$FARFIELD_DATA``, or else the directory beside the repository.
    """
    shipped = Path(__file__).resolve().parent / "data"
    configured = os.environ.get("FARFIELD_DATA")
    if configured:
        return [shipped, Path(configured).expanduser()]
    repository = Path(__file__).resolve().parents[3]
    return [shipped, repository.parent / "shared" / "data"]


def find_dataset(name: str) -> Path:
    """Return the file of a registered set.

    Raises
    ------
    KeyError
        If no set has this name; the error lists near names.
    FileNotFoundError
        If the set is registered but its file is not here; the error names the public source and its licence.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
        raise KeyError(f"there is no data set {name!r}.{hint} Known sets: {', '.join(sorted(DATASETS))}")
    entry = DATASETS[name]
    for directory in data_directories():
        if (directory / entry.file).exists():
            return directory / entry.file
    looked = " and ".join(str(directory / entry.file) for directory in data_directories())
    raise FileNotFoundError(
        f"the data set {name!r} is not here (looked for {looked}). Public source: {entry.source}; licence: "
        f"{entry.licence}. Set the environment variable FARFIELD_DATA to a directory that holds {entry.file!r}"
    )


def resolve_data(data: str | Path) -> Path:
    """Return the file behind a registry name or a path: an existing file goes first, then the registry.

    Raises
    ------
    FileNotFoundError
        If it is neither an existing file nor a registered set whose file is here.
    """
    path = Path(data).expanduser()
    if path.exists():
        return path
    if str(data) in DATASETS:
        return find_dataset(str(data))
    near = difflib.get_close_matches(str(data), DATASETS, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
    raise FileNotFoundError(
        f"{str(data)!r} is neither a file nor a registered data set.{hint} Known sets: {', '.join(sorted(DATASETS))}"
    )
