from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from autospec.training import models, tokens
from autospec.training.corpus import SourceFile
from autospec.training.settings import ModelShape

NAMES = ("total", "values", "weights", "counter", "result", "offset", "limit", "table")


def _function(source: random.Random, number: int) -> str:
    first, second, third = source.sample(NAMES, 3)
    return (
        f"def compute_{first}_{number}({first}, {second}):\n"
        f'    """Combine {first} with {second} until nothing of number {number} is left to be combined.\n'
        "\n"
        f"    The {third} of every step is added to the {first}, and what is beyond the {second} is dropped, so that\n"
        f"    the {first} which comes back is never larger than the {second} that was given to begin with.\n"
        '    """\n'
        f"    # The {third} starts where the {first} ended, because a step that is taken twice would be\n"
        f"    # counted twice, and the {second} does not know of steps that were taken before the first of them.\n"
        f"    {third} = {first} + {number}\n"
        f"    for item in range({second}):\n"
        f"        {third} = {third} + item * {first}\n"
        f"        if {third} > {second}:\n"
        f"            {third} = {third} - {second}\n"
        f"    {first} = {third} % {number + 7}\n"
        f"    return {first}\n"
    )


def _short_function(source: random.Random, number: int) -> str:
    first, second = source.sample(NAMES, 2)
    return (
        f"def take_{first}({first}, {second}):\n"
        f"    for {second} in sorted({first}):\n"
        f"        if {second} > {number}:\n"
        f"            {first} = {first} - {second}\n"
        f"            {first}.append({second})\n"
        f"        {first} = max({first}, {second})\n"
        f"    return {first} or {second}\n"
    )


@pytest.fixture(scope="session")
def source_files() -> list[tuple[SourceFile, str]]:
    """Forty generated files of two packages; every second one is held out."""
    files = []
    for index in range(40):
        source = random.Random(index)
        text = "import math\n\n\n" + "\n\n".join(
            (_short_function if i % 2 else _function)(source, 100 * index + i) for i in range(8)
        )
        package = "alpha" if index < 20 else "beta"
        files.append(
            (SourceFile(package, f"{package}/f{index:02d}.py", f"{index:064x}", len(text), index % 2 == 1), text)
        )
    return files


@pytest.fixture(scope="session")
def tokenizer(source_files: list[tuple[SourceFile, str]]) -> Tokenizer:
    return tokens.train_tokenizer([text for file, text in source_files if not file.held_out], 400)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokens.save_tokenizer(tokenizer, folder, 64)
    return folder


@pytest.fixture(scope="session")
def packed(tokenizer: Tokenizer, source_files: list[tuple[SourceFile, str]]) -> np.ndarray:
    return tokens.pack(tokenizer, [text for file, text in source_files if not file.held_out], 0)


@pytest.fixture
def tiny_model() -> torch.nn.Module:
    return models.make_model(ModelShape(2, 32, 2, 64, 64, False), 400, 0)
