"""Asks a hospital's picture archive (PACS) for studies and takes them in, by DICOM or DICOMweb."""
