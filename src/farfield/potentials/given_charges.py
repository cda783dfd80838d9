"""The far field of models whose short range predicts the charges itself, summed and read out as they were trained."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.published import PublishedCoulomb
from farfield.potentials.baselines import charge_table
from farfield.potentials.features import Features
from farfield.potentials.long_range import LongRange
from farfield.units import INVERSE_TWO_EPSILON_0


class GivenCharges(LongRange):
    """Charges that are the first of the scalar features, with the published sum and Born charges; no heads.

    For models made with the library ``les``, whose numbers it reproduces. Born charges are made with one lattice
    harmonic and times √``epsilon_factor`` in every geometry, unless `farfield.Model` is told otherwise.

    Parameters
    ----------
    smearing, dl, norm_factor, self_interaction, accuracy
        As in `farfield.electrostatics.published.PublishedCoulomb`.
    remove_mean
        Take the mean charge of a system off before the polarization is differentiated.
    epsilon_factor
        ε∞ that Born charges are scaled by.
    fixed_charges
        Charges (e) by atomic number that are added to those of the features.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    coulomb: PublishedCoulomb

    def __init__(
        self,
        *,
        smearing: float = 1.0,
        dl: float | None = 2.0,
        norm_factor: float = INVERSE_TWO_EPSILON_0,
        self_interaction: bool = False,
        accuracy: float = 1e-4,
        remove_mean: bool = True,
        epsilon_factor: float = 1.0,
        fixed_charges: Mapping[int | str, float] | None = None,
    ) -> None:
        super().__init__(1, smearing=smearing, accuracy=accuracy)
        if not epsilon_factor > 0:
            raise ValueError(f"`epsilon_factor` is {epsilon_factor} but must be positive")
        del self.charges  # nothing is learned here
        self.coulomb = PublishedCoulomb(
            smearing, dl=dl, norm_factor=norm_factor, self_interaction=self_interaction, accuracy=accuracy
        )
        fixed, table = charge_table(fixed_charges or {})
        self._nominal = table if fixed else None
        self.born_options = {"harmonics": 1, "mean": "attached" if remove_mean else "kept"}
        self.epsilon_everywhere = float(epsilon_factor)
        self._config = {
            **self.coulomb.config(), "remove_mean": remove_mean, "epsilon_factor": epsilon_factor,
            "fixed_charges": {str(number): value for number, value in fixed.items()} or None,
        }  # fmt: skip

    def rescale(self, charge_scale: float) -> None:
        """Refuse: there are no heads.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("the charges of this model come from its short range: it has no heads to be trained on")

    def _multipoles(
        self, batch: AtomicBatch, features: Features, detach_total: bool
    ) -> tuple[Multipoles, Tensor | None]:
        charges = features.scalars[:, 0]
        if self._nominal is not None:
            self._nominal = self._nominal.to(charges.device)
            charges = charges + self._nominal[batch.numbers].to(charges.dtype)
        return Multipoles(charges), self._excess(charges, batch)
