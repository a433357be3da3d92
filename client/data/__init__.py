"""Readers and checks of a hospital's own images; the agent enters through :func:`open_data`.

One image's way: :mod:`~client.data.catalogue` lists it, :mod:`~client.data.examine` opens it with
one of :mod:`~client.data.readers` and checks it with :mod:`~client.data.picture_checks`,
:mod:`~client.data.survey` compares it with all others, :mod:`~client.data.cache` keeps it.
"""

from client.data.contract import DataContract
from client.data.hospital_data import HospitalData, HospitalRecords, open_data

__all__ = ["DataContract", "HospitalData", "HospitalRecords", "open_data"]
