"""The MovieLens data sets: names, files, layouts and published checksums."""

from dataclasses import dataclass

from lowrank_opt.errors import DataError

OFFICIAL_SPLITS = ("u1", "u2", "u3", "u4", "u5", "ua", "ub")
FOLD_SIZE = 20_000


@dataclass(frozen=True)
class RatingsFile:
    """One file of ratings: a user, an item, a rating and a timestamp on each line.

    Attributes
    ----------
    name : str
        File name inside the data set's folder.
    separator : str
        Between the four fields.
    header : str or None
        The first line, if the file starts with one.
    """

    name: str
    separator: str
    header: str | None = None

    @property
    def first_line(self) -> int:
        """Number, from 1, of the first line that holds a rating."""
        return 1 if self.header is None else 2


@dataclass(frozen=True)
class Variant:
    """One MovieLens data set.

    Attributes
    ----------
    name : str
        As GroupLens names the archive, without ``.zip``.
    folder : str
        The folder inside the archive.
    files : tuple of RatingsFile
        The files that hold all ratings, best first; one of them is enough.
    md5 : str or None
        Published checksum of the archive; ``None`` for data sets that GroupLens renews, whose
        checksum is fetched from beside the archive.
    count : int or None
        Number of ratings, ``None`` where it changes.
    scale : tuple of float
        Lowest and highest rating.
    """

    name: str
    folder: str
    files: tuple[RatingsFile, ...]
    md5: str | None
    count: int | None
    scale: tuple[float, float] = (0.5, 5.0)


U_DATA = RatingsFile("u.data", "\t")
WHEEL_FILE = RatingsFile(
    "ml-100k.inter", "\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float"
)
RATINGS_DAT = RatingsFile("ratings.dat", "::")
RATINGS_CSV = RatingsFile("ratings.csv", ",", "userId,movieId,rating,timestamp")

VARIANTS = (
    Variant(
        name="ml-100k",
        folder="ml-100k",
        files=(U_DATA, WHEEL_FILE),
        md5="0e33842e24a9c977be4e0107933c0723",
        count=100_000,
        scale=(1.0, 5.0),
    ),
    Variant(
        name="ml-1m",
        folder="ml-1m",
        files=(RATINGS_DAT,),
        md5="c4d9eecfca2ab87c1945afe126590906",
        count=1_000_209,
        scale=(1.0, 5.0),
    ),
    Variant(
        name="ml-10m",
        folder="ml-10M100K",
        files=(RATINGS_DAT,),
        md5="ce571fd55effeba0271552578f2648bd",
        count=10_000_054,
    ),
    Variant(
        name="ml-25m",
        folder="ml-25m",
        files=(RATINGS_CSV,),
        md5="6b51fb2759a8657d3bfcbfc42b592ada",
        count=25_000_095,
    ),
    Variant(
        name="ml-32m",
        folder="ml-32m",
        files=(RATINGS_CSV,),
        md5="d472be332d4daa821edc399621853b57",
        count=32_000_204,
    ),
    Variant(
        name="ml-latest-small",
        folder="ml-latest-small",
        files=(RATINGS_CSV,),
        md5=None,
        count=None,
    ),
)


def find_variant(name: str) -> Variant:
    """Look a data set up by name.

    Parameters
    ----------
    name : str
        Such as ``"ml-100k"``; ``"latest-small"`` stands for ``"ml-latest-small"``.

    Returns
    -------
    Variant

    Raises
    ------
    DataError
        If there is no data set of this name.

    Examples
    --------
    >>> find_variant("ml-10m").folder
    'ml-10M100K'
    """
    wanted = name.lower()
    for variant in VARIANTS:
        if wanted in (variant.name, variant.name.removeprefix("ml-")):
            return variant
    names = ", ".join(variant.name for variant in VARIANTS)
    raise DataError(f"variant must be one of {names}; got {name!r}; choose one of these")
