"""The page of `benchmarks.equivalence`, from made-up results."""

import pytest

from benchmarks import equivalence
from fcn_jax.convert.report import LoadReport
from fcn_jax.verify import Comparison, Report, Section, evidence
from fcn_jax.verify.predictions import Agreement


def result(model, *excesses, size=(64, 96), **settings):
    """A result with one run for each excess of the gradient's worst tensor."""

    def section(name, excess, inconclusive=0):
        return {
            "tensors": 9,
            "inconclusive": inconclusive,
            "attempts": 1,
            "worst": name,
            "error": excess * 1e-4,
            "limit": 1e-4,
            "reference_error": 5e-5,
            "excess": excess,
        }

    runs = [
        {
            "equal": excess <= 1,
            "tensors": 12,
            "argmax": 1 - excess / 1000,
            "torch_argmax": 1.0,
            "sections": {
                "gradients": section(f"tensor{number}", excess),
                "training with sgd": section("t", 0.0, inconclusive=7 + number),
            },
            "training": {"compared": 400, "unjudged": 7 + number},
            "sensitivity": {
                "tensor": f"s{number}",
                "lowest": 0.5 - number / 4,
                "not_proven": number,
            },
            "mutation": {"planted": 50, "caught": 1 - number / 50, "right_layer": 0.98},
        }
        for number, excess in enumerate(excesses)
    ]
    known = {"size": list(size), "batch": 2, "train_steps": 5, "seeds": len(runs)}
    known |= {"train_lr": None, "options": {}, "dtype": "float32", "mutate": False}
    rest = {"environment": {"versions": {"jax": "1.2"}}}
    return {"model": model, **known, **rest, **settings, "runs": runs}


def test_page_names_the_command_of_each_table():
    text = equivalence.page([result("a", 0.5), result("b", 0.5, size=(96, 128)), result("c", 0.5)])
    first, second = text.split("Made by ")[1:]
    assert first.startswith(
        "`python -m benchmarks.equivalence --size 64 96 --batch 2 --train-steps 5 --seeds 1`"
    )
    assert "--size 96 128" in second.splitlines()[0]
    assert [line.split()[1] for line in first.splitlines() if line.startswith("| `")] == [
        *("`a`", "`c`"),
    ]
    assert text.endswith("Versions: jax 1.2.\n")


def test_cell_is_one_tensor_of_the_worst_seed():
    *_, row = equivalence.table([result("a", 0.25, 2.0, options={"width": 512}, train_lr=1e-4)])
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "`a`, backbone option width 512, learning rate 0.0001",
        "**no**",
        "12",
        "99.8000% / 100.0000%",
        "",
        "",
        "`tensor1` 2.0e-04 / 1.0e-04 (5.0e-05)",
        "`t` 0.0e+00 / 1.0e-04 (5.0e-05)",
        "",
        "392 / 8 (2.0%)",
        "`s1` 2.5e-01; 1 not proven",
        "98.0% of 50, 98.0%",
    ]


def test_cell_without_a_conclusive_tensor_says_so():
    found = result("a", 0.5)
    found["runs"][0]["sections"]["training with sgd"]["inconclusive"] = 9
    (*_, row) = equivalence.table([found])
    assert "| all inconclusive |" in row


def test_results_without_sensitivity_and_mutants_leave_their_cells_empty():
    found = result("a", 0.5)
    found["runs"][0] |= {"sensitivity": None, "mutation": None}
    (*_, row) = equivalence.table([found])
    assert row.endswith("| 393 / 7 (1.8%) |  |  |")


def test_results_of_earlier_versions_are_read():
    old, new = result("a", 0.5), result("a", 0.5)
    new["runs"][0]["training"] = {"compared": 400, "inconclusive": 7}
    assert equivalence.table([old]) == equivalence.table([new])


def test_bfloat16_has_a_table_and_a_command_of_its_own():
    text = equivalence.page([result("a", 0.5), result("a", 0.5, dtype="bfloat16", mutate=True)])
    assert text.count("Made by") == 2
    assert "--seeds 1 --dtype bfloat16 --mutate`" in text


def test_result_of_another_version_is_measured_again():
    pytest.importorskip("torch")
    here = evidence.environment()
    more = {**here, "versions": {**here["versions"], "a-plugin": "1.0"}}
    other = {**here, "versions": {**here["versions"], "jax": "0.1"}}
    assert equivalence._is_here(here)
    assert equivalence._is_here(more)
    assert not equivalence._is_here(other)
    assert not equivalence._is_here({**here, "torch_threads": -1})


def test_summary_takes_the_worst_step_and_counts_all():
    """Each step is a section of the report."""

    def comparison(name, error, reference_error=1e-7):
        return Comparison(name, (3,), error, reference_error, 1e-6, error)

    report = Report("net", "float32", {})
    report.sections = [
        Section("logits at 64x96", 2.0, (comparison("out", 1e-8),)),
        Section("training with sgd, step 1", 3.0, (comparison("w", 1e-7), comparison("b", 2e-7))),
        Section(
            "training with sgd, step 2", 3.0, (comparison("w", 9e-7), comparison("b", 1, 0.7)), 2
        ),
    ]
    report.agreement = [Agreement((64, 96), 0.9, 0.8, 0.7)]
    report.coverage = LoadReport("state dict")
    found = equivalence.summary(report)
    steps = found["sections"]["training with sgd"]
    assert (steps["worst"], steps["error"], steps["attempts"]) == ("w", 9e-7, 2)
    assert (steps["tensors"], steps["inconclusive"]) == (4, 1)
    assert found["training"] == {"compared": 4, "inconclusive": 1}
    assert found["sections"]["logits"]["worst"] == "out"
    assert found["mutation"] is None
