"""DICOM in and out behind one `Archive` protocol."""
