"""Second moments: computed as their definition says, once, from the text that is named."""

import gzip
from pathlib import Path

import pytest
import torch
from palimpsest.editors.covariance import SHRINKAGE, covariances, spectrum
from palimpsest.editors.rows import Rows
from palimpsest.editors.workbench import Workbench
from palimpsest.errors import ConfigError
from palimpsest.llm.local import LocalLLM

TEXT = "The sea was calm that night, and the moon stood over it."


@pytest.fixture
def bench(tiny_llm: LocalLLM, tmp_path: Path) -> Workbench:
    return Workbench(tiny_llm.model, tiny_llm.tokenizer, tmp_path / "bench")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "sea.txt"
    path.write_text(TEXT)
    return path


def test_it_is_the_mean_of_outer_products_of_all_keys_but_the_first(
    bench: Workbench, text: Path
) -> None:
    rows = Rows.of([(bench.prober.ids(TEXT), ())])
    keys = bench.capture(rows, 1).inputs[0, 1:]
    plain = keys.T @ keys / len(keys)
    even = torch.eye(len(plain)) * plain.trace() / len(plain)
    found = covariances(bench, [1], text=str(text))[1]
    torch.testing.assert_close(found, (1 - SHRINKAGE) * plain + SHRINKAGE * even)


def test_no_more_tokens_are_read_than_allowed(bench: Workbench, text: Path) -> None:
    rows = Rows.of([(bench.prober.ids(TEXT), ())])
    keys = bench.capture(rows, 0).inputs[0, 1:11]
    found = covariances(bench, [0], text=str(text), samples=10)[0]
    assert float(found.trace()) == pytest.approx(float(keys.pow(2).sum() / 10), rel=1e-4)


def test_it_is_computed_once_and_anew_for_another_text(bench: Workbench, text: Path) -> None:
    first = covariances(bench, [0], text=str(text))[0]
    [file] = bench.folder.glob("covariance-*")
    written = file.stat().st_mtime_ns
    assert torch.equal(covariances(bench, [0], text=str(text))[0], first)
    assert file.stat().st_mtime_ns == written
    text.write_text(TEXT + " Nobody was awake.")
    assert not torch.equal(covariances(bench, [0], text=str(text))[0], first)


def test_layers_computed_together_or_alone_are_equal(bench: Workbench, text: Path) -> None:
    alone = covariances(bench, [0], text=str(text))[0]
    for file in bench.folder.glob("covariance-*"):
        file.unlink()
    assert torch.equal(covariances(bench, [0, 1], text=str(text))[0], alone)


def test_a_packed_text_and_a_folder_of_texts_count_as_the_text(
    bench: Workbench, text: Path, tmp_path: Path
) -> None:
    plain = covariances(bench, [0], text=str(text))[0]
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "sea.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (folder / "cover.png").write_bytes(b"no text")
    assert torch.equal(covariances(bench, [0], text=str(folder))[0], plain)
    assert torch.equal(covariances(bench, [0], text=str(folder / "sea.txt.gz"))[0], plain)


def test_without_a_text_the_packages_own_sentences_are_read(bench: Workbench) -> None:
    assert covariances(bench, [0], samples=200)[0].trace() > 0


def test_the_spectrum_makes_the_moment_again(bench: Workbench, text: Path) -> None:
    values, vectors = spectrum(bench, 0, text=str(text))
    again = vectors * values @ vectors.T
    torch.testing.assert_close(
        again, covariances(bench, [0], text=str(text))[0], atol=1e-5, rtol=1e-4
    )
    assert values.diff().min() >= 0


@pytest.mark.parametrize("content", [None, "  \n"])
def test_a_text_that_is_not_there_or_empty_is_named(
    bench: Workbench, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "missing.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"missing\.txt.*name a \.txt"):
        covariances(bench, [0], text=str(path))
