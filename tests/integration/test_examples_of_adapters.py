"""The examples with other toolkits run as they stand."""

import re

import pytest

from examples import openood_postprocessor, pytorch_ood_search


def test_pytorch_oods_search_tunes_and_judges(capsys: pytest.CaptureFixture[str]) -> None:
    pytorch_ood_search.main()
    first, second, third = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"chosen: \{'w_min': 0\.\d, 'o_max': 0\.\d+\}, AUROC in the search: 0\.[89]\d{3}", first)
    assert re.match(r"on unseen classes: \{'AUROC': 0\.[89]", second)
    assert re.match(r"the fusion on them: \{'AUROC': 0\.9", third)


def test_the_postprocessor_answers_otherwise_at_each_setting(capsys: pytest.CaptureFixture[str]) -> None:
    openood_postprocessor.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["fusion", "w_min=0", "w_min=0.3", "w_min=0.5"]
    values = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(set(values)) == 4
    assert min(values) > 0.7
    assert values[0] == max(values) > 0.85
