"""The page of `benchmarks.equivalence`, from made-up results."""

from benchmarks import equivalence


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
                "training, after the last step": section("t", 0.0, inconclusive=7 + number),
            },
        }
        for number, excess in enumerate(excesses)
    ]
    known = {"size": list(size), "batch": 2, "train_steps": 20, "seeds": len(runs)}
    rest = {"train_lr": 0.01, "options": {}, "environment": {"versions": {"jax": "1.2"}}}
    return {"model": model, **known, **rest, **settings, "runs": runs}


def test_page_names_the_command_of_each_table():
    text = equivalence.page([result("a", 0.5), result("b", 0.5, size=(96, 128)), result("c", 0.5)])
    first, second = text.split("Made by ")[1:]
    assert first.startswith(
        "`python -m benchmarks.equivalence --size 64 96 --batch 2 --train-steps 20 --seeds 1`"
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
        "",
        "`t` 0.0e+00 / 1.0e-04 (5.0e-05)",
        "8 of 9",
    ]


def test_cell_without_a_conclusive_tensor_says_so():
    found = result("a", 0.5)
    found["runs"][0]["sections"]["training, after the last step"]["inconclusive"] = 9
    (*_, row) = equivalence.table([found])
    assert "| all inconclusive | 9 of 9 |" in row
