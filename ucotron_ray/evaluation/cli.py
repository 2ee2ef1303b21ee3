"""The verbs `evaluate` and `compare`, and their table."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags

MODEL_HELP = "bundle/NAME[@int8|@int4][+free|+entities|+vocabulary], http://HOST/v1#MODEL"
ENDINGS = "these also with +free or +entities"


def add_evaluate(verbs: Any) -> None:
    """`evaluate`: triples against held-out rows."""
    parser = flags.verb(
        verbs, "evaluate", "Score a model's triples on held-out rows and on the guide's five prompts.", _evaluate
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"{MODEL_HELP}, an adapter's name or path, or a base model ({ENDINGS})",
    )
    flags.add_setting(parser, "--data", "evaluation.data", metavar="NAME|FILE")
    flags.add_setting(parser, "--max-rows", "evaluation.max_rows")
    text = "Do not score the base model beside an adapter."
    flags.add_setting(parser, "--no-base", "evaluation.base", const=False, text=text)


def add_compare(verbs: Any) -> None:
    """`compare`: several models on the same rows."""
    parser = flags.verb(
        verbs,
        "compare",
        "Score models on the same held-out rows and say which is better, and how sure that is.",
        _compare,
    )
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help=f"the first one is compared with: {MODEL_HELP}, an adapter, a base model, or co-occurrence (what the "
        "server does without a model)",
    )
    flags.add_setting(parser, "--data", "evaluation.data", metavar="NAME|FILE")
    flags.add_setting(parser, "--max-rows", "evaluation.max_rows")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="also write the page there")


def add_benchmark(verbs: Any) -> None:
    """`benchmark`: a public set in its own layout."""
    parser = flags.verb(
        verbs,
        "benchmark",
        "Score a model on a public set that you have at hand, by its published protocol, beside baselines and "
        "published figures.",
        _benchmark,
    )
    parser.add_argument(
        "layout", metavar="LAYOUT", help="conll04, scierc, crossre, docred, nyt, webnlg or text2kgbench"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the set as it is published")
    parser.add_argument(
        "--model",
        default="co-occurrence",
        metavar="MODEL",
        help=f"{MODEL_HELP}, an adapter, a base model, or co-occurrence (default), as the server does without a model",
    )
    parser.add_argument("--split", choices=("train", "dev", "test"), help="default: test; of docred dev")
    parser.add_argument(
        "--protocol",
        choices=("entities-given", "end-to-end", "pairs"),
        default="entities-given",
        help="all triples of a text, entities given or not; or the relation of each pair that the set lists",
    )
    parser.add_argument("--max-rows", type=int, metavar="N", help="a fixed sample of the rows (default: all)")
    parser.add_argument(
        "--dry-run", action="store_true", help="rows, relations and the first question; nothing is asked"
    )


def _evaluate(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.evaluation import answers, comparison
    from ucotron_ray.evaluation import stage as scoring
    from ucotron_ray.models import stage as models

    requirements.require_packages("ray", "torch", "transformers", "peft", "gguf")
    # An adapter and the bundle that was made from it have one name; their scores do not.
    plain = Path(args.model).name == args.model or Path(args.model).exists()
    with flags.run_of(args, name=Path(args.model).name if plain else scoring.name_of(args.model)) as run:
        source = answers.model_ref(run, args.model)
        data = comparison.rows_of(run, [source])
        first = None
        if source.adapter is not None and run.config.recipe.evaluation.base:
            first = models.note_hub(run, models.original_base(source.adapter, run.store))
        stage = "evaluate" if source.adapter or source.base is None else "evaluate-base"
        artifact = scoring.score(run, run.name, source, data, stage=stage)
        scores = scoring.scores_of(artifact)
        result = {"artifact": str(artifact.path), **scores["overall"], "groups": scores["groups"]}
        result |= {"raw": scores["raw"], "end_to_end": scores["end_to_end"], "guide": scores["guide"]}
        result |= {"calibration": scores["calibration"], "report": str(artifact.path / scoring.REPORT)}
        beside = {run.name: scores}
        if first is not None:
            before = scoring.scores_of(scoring.evaluate(run, f"{run.name}-base", first, None, data))
            result["base"] = before["overall"]
            beside = {f"{run.name}-base": before, **beside}
        shots = run.config.recipe.evaluation.few_shots
        if first is not None and shots:
            base = answers.ModelRef(f"{run.name}-base", "model", base=first)
            shown = comparison.with_examples(run, base, source, data, shots)
            few = scoring.scores_of(
                scoring.score(run, f"{run.name}-base-{shots}-examples", shown, data, stage="evaluate-examples")
            )
            result["few_shots"] = few["overall"]
            beside = {shown.label: few, **beside}
    _print_scores(beside, scores.get("baselines") or {})
    return {**result, "baselines": scores.get("baselines") or {}}


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.core.outputs import check_file
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.evaluation import comparison
    from ucotron_ray.evaluation import stage as scoring

    if args.report:
        check_file(args.report)
    requirements.require_packages("ray", "torch", "transformers", "peft", "gguf", "aiohttp")
    with flags.run_of(args, name="compare") as run:
        sources = comparison.sources(run, args.models)
        data = comparison.rows_of(run, sources)
        sources = comparison.with_base_examples(run, sources, data)
        artifact = comparison.compare(run, sources, data, named=args.name is not None)
        compared = comparison.comparison_of(artifact)
        page = artifact.path / scoring.REPORT
        if args.report:
            datasets.copy_file(page, args.report)
    guesses = compared.get("baselines") or {}
    _print_scores(compared["models"], guesses)
    first = next(iter(compared["models"]))
    for label, entry in compared["differences"].items():
        print(
            f"{label} against {first}: {entry['difference']:+.3f} F1 ({entry['low']:+.3f} to {entry['high']:+.3f}), "
            f"p of «not better» {entry['p_not_better']:.3f}"
        )
    print(f"won: {', '.join(f'{label} {count}' for label, count in compared['wins'].items())}, ties {compared['ties']}")
    print(f"page: {page}")
    models = {label: scores["overall"] for label, scores in compared["models"].items()}
    shown = {key: compared[key] for key in ("differences", "wins", "ties")}
    return {"artifact": str(artifact.path), "report": str(page), "models": models, "baselines": guesses, **shown}


def _benchmark(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.evaluation import answers
    from ucotron_ray.evaluation import stage as scoring
    from ucotron_ray.evaluation.benchmark import stage as benchmarks

    asked = benchmarks.prepared(args.layout, args.data, args.split, args.protocol, args.max_rows)
    if args.dry_run:
        planned = benchmarks.plan(asked)
        _print_plan(planned)
        return planned
    if args.model != answers.CO_OCCURRENCE:
        requirements.require_packages("ray", "torch", "transformers", "peft", "gguf", "aiohttp")
    name = f"{scoring.name_of(Path(args.model).name)}-{args.layout}-{asked.data.split}-{args.protocol}"
    with flags.run_of(args, name=name) as run:
        source = benchmarks.asked_source(run, answers.model_ref(run, args.model), asked)
        artifact = benchmarks.score(run, source, asked)
    report = benchmarks.report_in(artifact)
    _print_report(source.label, report)
    return {"artifact": str(artifact.path), "report": str(artifact.path / benchmarks.REPORT), **report}


def _print_plan(planned: dict[str, Any]) -> None:
    print(
        f"{planned['layout']} {planned['split']}, {planned['protocol']}: {planned['rows']} rows with "
        f"{planned['relations']} relations of {planned['predicates']} kinds, {planned['questions']} questions"
    )
    print(f"training rows: {planned['training_rows']}; rows whose text is one of them: {planned['rows_in_training']}")
    print(f"predicates: {', '.join(planned['vocabulary'])}")
    print(f"the first question:\n{planned['first_question']}")


def _print_report(label: str, report: dict[str, Any]) -> None:
    """A line for every measure of model and baselines, then the published figures with their sources."""
    print(f"{report['layout']} {report['split']}, {report['protocol']}: {report['rows']} rows")
    print(f"{'':<48} {'F1':>6} {'95 % interval':>16} {'precision':>10} {'recall':>7}")
    parts = {label: report["measures"], **report["baselines"]}
    if report["without_training_texts"]:
        parts[f"{label}, {report['rows_in_training']} training texts left out"] = report["without_training_texts"]
    for who, measures in parts.items():
        for measure, values in measures.items():
            if values:
                bounds = f"{values['f1_low']:.3f}-{values['f1_high']:.3f}" if "f1_low" in values else ""
                print(
                    f"{f'{who}: {measure}':<48} {values['f1']:>6.3f} {bounds:>16} {values['precision']:>10.3f} "
                    f"{values['recall']:>7.3f}"
                )
    if report["ceiling"] is not None:
        print(f"boundaries: {report['ceiling']:.3f} at most, since answers name entities and a name can stand twice")
    for entry in report["published"]:
        print(f"published: {entry['system']}: {entry['f1']:.3f} ({entry['measure']}; {entry['source']})")


def _print_scores(beside: dict[str, dict[str, Any]], baselines: dict[str, dict[str, float]]) -> None:
    print(f"{'':<24} {'F1':>6} {'95 % interval':>16} {'precision':>10} {'recall':>7} {'valid':>6} {'rows':>5}")
    for name, scores in beside.items():
        parts = {
            "": scores["overall"],
            **scores["groups"],
            "raw layout": scores["raw"],
            "no entities given": scores["end_to_end"],
            "guide's five": scores["guide"],
        }
        for part, values in parts.items():
            if values:
                _print_line(f"{name} {part}".strip(), values)
    for name, values in baselines.items():
        _print_line(name, values)


def _print_line(label: str, values: dict[str, float]) -> None:
    interval = f"{values['f1_low']:.3f}-{values['f1_high']:.3f}"
    print(
        f"{label:<24} {values['f1']:>6.3f} {interval:>16} {values['precision']:>10.3f} "
        f"{values['recall']:>7.3f} {values['valid_answers']:>6.2f} {values['rows']:>5.0f}"
    )
