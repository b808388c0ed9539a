"""The check of annotations at run time: beartype, for which an int is a float, as for PEP 484."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
