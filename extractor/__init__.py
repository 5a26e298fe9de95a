"""Image bytes -> patches -> feature vectors.

Pure compute: no database, no Prefect, and no network but the download of torchvision's weights and
pictures in object stores.
"""
