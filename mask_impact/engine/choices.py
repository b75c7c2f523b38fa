"""What a measurement can be asked for, by name. Light: knows neither torch nor models."""

VARIANT_GROUPS = ("full", "attn", "heads")


ABLATIONS = ("mask", "zero-value", "mean-value")


QUERIES = ("last", "all")
MEASURES = ("log-odds", "log-prob")
FILLS = ("border", "mean", "blur", "grey")  # what a region's pixels are replaced by
REGIONS = ("search", "tokens", "patches")  # which regions of a picture are asked about
BASELINES = ("blank", "mean", "zero")  # where features that are taken away are replaced from
UNITS = ("patch", "token")  # of an image, that the map of a vision tower is of
