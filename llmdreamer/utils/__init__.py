"""Helpers without a domain: errors, devices, distributed processes, files, redaction."""
