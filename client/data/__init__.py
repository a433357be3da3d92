"""Readers and checks of a hospital's own images; the agent enters through :func:`open_data`."""

from client.data.contract import DataContract
from client.data.hospital_data import HospitalData, HospitalRecords, open_data

__all__ = ["DataContract", "HospitalData", "HospitalRecords", "open_data"]
