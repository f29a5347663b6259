"""The `movie_snippets` dataset: short opinions, each with the mean of 20 human ratings."""

import contextlib
import io
import os
import pathlib
import shutil
import tempfile

import tensorflow as tf
import tensorflow_datasets as tfds

from tfppo.data.fetch_snippets import find_archive, read_snippets
from tfppo.data.splits import SPLITS, split_of
from tfppo.errors import UserError

# Movie reviews come first in each, so that a movie text is in the same split of both.
SOURCES = {
    "movies": ("movieReviewSnippets",),
    "all": ("movieReviewSnippets", "tweets", "amazonReviewSnippets", "nytEditorialSnippets"),
}

_DESCRIPTION = """
Sentences and short texts from movie reviews, product reviews, tweets and newspaper editorials, each
rated from -4 (extremely negative) to 4 (extremely positive) by 20 people; `rating` is their mean.
The vaderSentiment source archive (MIT licence) carries them.
"""

_CITATION = """
@inproceedings{hutto2014vader,
  title={VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text},
  author={Hutto, C.J. and Gilbert, E.E.},
  booktitle={Eighth International Conference on Weblogs and Social Media (ICWSM-14)},
  year={2014}
}
"""


class MovieSnippets(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of the rated snippets; configs `movies` (the default) and `all`."""

    name = "movie_snippets"
    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="movies", description="Movie reviews only."),
        tfds.core.BuilderConfig(name="all", description="All four sources."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Needed only without a network: the source archive of vaderSentiment 3.3.2."

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "source": tfds.features.Text(),
                    "rating": tfds.features.Scalar(tf.float32),
                    "text": tfds.features.Text(),
                }
            ),
            citation=_CITATION,
        )

    def _split_generators(self, dl_manager):
        try:
            manual_dir = dl_manager.manual_dir
        except AssertionError:  # TFDS's word for a manual folder that is missing or empty
            manual_dir = None
        with tempfile.TemporaryDirectory() as folder:
            snippets = read_snippets(find_archive(folder, manual_dir))
        records = clean_records(snippets, SOURCES[self.builder_config.name])
        return {split: self._generate_examples(records, split) for split in SPLITS}

    def _generate_examples(self, records, split):
        for record in records:
            key = f"{record['source']}/{record['id']}"
            if split_of(key) == split:
                yield key, record


def clean_records(snippets: dict[str, list[tuple[str, float, str]]], sources: tuple[str, ...]) -> list[dict]:
    """Turns {source: [(id, rating, text), ...]} into records of the given sources.

    White space becomes single spaces. Of texts that differ in case alone only the first stays, so
    that no text is in two splits.
    """
    records: dict[str, dict] = {}
    for source in sources:
        for identifier, rating, raw_text in snippets[source]:
            text = " ".join(raw_text.split())
            record = {"id": identifier, "source": source, "rating": rating, "text": text}
            if text:
                records.setdefault(text.casefold(), record)
    return list(records.values())


def prepare(data_dir: str | None = None, config: str = "movies") -> MovieSnippets:
    """Returns the prepared builder, fetching and writing the dataset on the first call only.

    `data_dir` None is the TFDS default. Everything is written to a temporary folder and renamed
    when complete. Raises UserError for an unknown config, a folder that cannot be written, or an
    archive that cannot be fetched.
    """
    if config not in SOURCES:
        raise UserError(f"movie_snippets config {config!r} is unknown: use one of {list(SOURCES)}.")
    data_dir = data_dir and os.path.expanduser(data_dir)
    builder = MovieSnippets(data_dir=data_dir, config=config)
    if builder.is_prepared():
        return builder
    root = pathlib.Path(builder.data_dir_root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=root, prefix="incomplete.")
    except OSError as error:
        raise UserError(f"data_dir {str(root)!r} cannot be written ({error.strerror}): name another folder.") from error
    with scratch:
        _prepare_in(pathlib.Path(scratch.name), root, builder)
    return MovieSnippets(data_dir=data_dir, config=config)


def _prepare_in(scratch, root, builder):
    draft = MovieSnippets(data_dir=scratch, config=builder.builder_config.name)
    download_config = tfds.download.DownloadConfig(manual_dir=root / "downloads" / "manual", try_download_gcs=False)
    # TFDS prints where it writes, which is not where the user will find the dataset.
    with contextlib.redirect_stdout(io.StringIO()):
        draft.download_and_prepare(download_dir=scratch / "downloads", download_config=download_config)
    # TFDS keeps the default config's name here, to load the dataset where this code is not there.
    shutil.copytree(scratch / builder.name / ".config", root / builder.name / ".config", dirs_exist_ok=True)
    final = pathlib.Path(builder.data_dir)
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        pathlib.Path(draft.data_dir).rename(final)
    except OSError:
        if not builder.is_prepared():  # otherwise another process has just put the same data there
            raise
