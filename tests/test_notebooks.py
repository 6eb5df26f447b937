"""How notebooks are stored: stable ids, tidy outputs, exported modules."""

import json

import pytest

from course_utils import CourseError
from course_utils.authoring import export, notebooks

PROGRESS = {"output_type": "stream", "name": "stderr", "text": ["a: 10%|#", "  | 1/10"]}
WIDGET = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "w"}


def notebook(*cells):
    return {"cells": list(cells), "metadata": {"widgets": {"state": 1}}, "nbformat": 4, "nbformat_minor": 5}


def code(source, outputs=(), tags=None):
    metadata = {"execution": {"iopub.status.busy": "now"}} | ({"tags": tags} if tags else {})
    return {"cell_type": "code", "id": "r4nd0m", "source": source, "metadata": metadata, "outputs": list(outputs), "execution_count": 1}


def test_normalise_is_stable_and_strips_what_changes():
    cells = [code("a", [PROGRESS]), code("a"), code("b", [{"output_type": "display_data", "data": dict(WIDGET), "metadata": {}}])]
    done = notebooks.normalise(notebook(*cells))
    again = notebooks.normalise(json.loads(json.dumps(done)))
    assert done == again and "widgets" not in done["metadata"]
    ids = [c["id"] for c in done["cells"]]
    assert len(set(ids)) == 3
    assert all(not c["outputs"] and "execution" not in c["metadata"] for c in done["cells"])


def test_a_control_keeps_its_still_picture():
    out = {"output_type": "display_data", "data": {**WIDGET, "image/png": "iVBOR"}, "metadata": {}}
    done = notebooks.normalise(notebook(code("show.play(f)", [out])))
    assert set(done["cells"][0]["outputs"][0]["data"]) == {"image/png", "text/plain"}


def test_streams_are_joined_and_paths_removed():
    root = str(notebooks.folder().parent)
    pieces = [{"output_type": "stream", "name": "stdout", "text": t} for t in ("one ", f"{root}/course_utils/show.py:1")]
    done = notebooks.normalise(notebook(code("x", pieces)))
    assert [o["text"] for o in done["cells"][0]["outputs"]] == ["one course_utils/show.py:1"]


def test_export_joins_tagged_cells(tmp_path):
    file = tmp_path / "01_made_up.ipynb"
    cells = [
        code("import torch\nfrom torch import nn", tags=["export"]),
        code("print('not exported')"),
        code("import torch\n\n\ndef f(x):\n    ### BEGIN SOLUTION\n    return torch.relu(x)\n    ### END SOLUTION", tags=["export", "exercise"]),
    ]
    file.write_text(json.dumps(notebook(*cells)))
    text = export.module_text(file)
    assert "SOLUTION" not in text and "not exported" not in text and text.count("import torch\n") == 1
    scope = {}
    exec(compile(text, "made_up", "exec"), scope)
    assert float(scope["f"](scope["torch"].tensor(-1.0))) == 0


def test_export_refuses_magics(tmp_path):
    file = tmp_path / "01_made_up.ipynb"
    file.write_text(json.dumps(notebook(code("%matplotlib inline", tags=["export"]))))
    with pytest.raises(CourseError, match="magic"):
        export.module_text(file)


def test_unknown_notebook():
    with pytest.raises(CourseError, match="no notebook for 'clop'"):
        notebooks.find("clop")
