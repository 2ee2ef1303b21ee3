"""The verb `fireworks`, with its own verbs: uploads, jobs, tests and batches at the vendor."""

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags, generators
from ucotron_ray.core.errors import ConfigError

"""The tasks that a teacher answers: that one is computed. A test compares them."""


def add_fireworks(verbs: Any) -> None:
    """`fireworks VERB`: everything that the guide does against the vendor."""
    text = "Uploads, fine-tuning jobs, batches and tests at Fireworks.ai (FIREWORKS_API_KEY, FIREWORKS_ACCOUNT_ID)."
    parser = verbs.add_parser("fireworks", help=text, description=text)
    actions = parser.add_subparsers(dest="action", required=True, metavar="VERB")
    _verb(actions, "models", "List the models that can be tuned, and the account's own.", _models)
    upload = _verb(actions, "upload", "Check a JSONL file line by line and upload it as a dataset.", _upload)
    upload.add_argument("file", type=Path, metavar="FILE")
    upload.add_argument("--dataset-id", metavar="ID", help="default: made of the file's name and its hash")
    _add_jobs(actions)
    _add_batch(actions)
    _add_tests(actions)


def _add_jobs(actions: Any) -> None:
    sft = _verb(actions, "sft", "Create a supervised fine-tuning job with the tier's numbers, or find it.", _sft)
    dpo = _verb(actions, "dpo", "Create a preference job with the tier's numbers, or find it.", _dpo)
    for parser, method in ((sft, "sft"), (dpo, "dpo")):
        parser.add_argument("--dataset", required=True, metavar="ID|FILE", help="a dataset at the vendor, or a file")
        flags.add_setting(parser, "--tier", "tier", alias="--model-size")
        parser.add_argument("--output-model", metavar="ID", help="what the trained model is called (default: the job)")
        for flag, name in (
            ("--epochs", "epochs"),
            ("--learning-rate", "learning_rate"),
            ("--lora-rank", "lora_rank"),
            ("--context-length", "max_context_length"),
            ("--batch-size", "batch_size"),
        ):
            flags.add_setting(parser, flag, f"training.{method}.{{tier}}.{name}")
        flags.add_setting(parser, "--wandb-project", "tracking.wandb_project", metavar="NAME")
        parser.add_argument("--again", type=int, default=1, metavar="N", help="the N-th job of the same request")
        parser.add_argument("--wait", action="store_true", help="wait for its end")
        _add_waiting(parser)
    sft.add_argument("--base-model", metavar="MODEL", help="default: the tier's model")
    sft.add_argument("--evaluation-dataset", metavar="ID|FILE")
    dpo.add_argument("--base-model", required=True, metavar="MODEL", help="a base model, or that of a supervised job")
    flags.add_setting(dpo, "--beta", "training.dpo.{tier}.beta")
    for name, text, handler in (
        ("status", "Show a job.", _status),
        ("wait", "Wait for a job: 0 completed, 1 ended otherwise, 75 paused or too late.", _wait),
        ("cancel", "Ask the vendor to stop a job.", _cancel),
        ("resume", "Ask the vendor to go on with a job that failed, was cancelled or paused.", _resume),
    ):
        parser = _verb(actions, name, text, handler)
        parser.add_argument("job", metavar="JOB", help="id or full name")
        if name == "wait":
            _add_waiting(parser)
    listing = _verb(actions, "list", "List jobs of all kinds, all pages.", _list)
    listing.add_argument("--kind", action="append", choices=("sft", "dpo", "batch"), help="default: sft and dpo")
    listing.add_argument("--limit", type=int, metavar="N", help="the newest N (default: all)")


def _add_batch(actions: Any) -> None:
    parser = _verb(actions, "batch", "Ask a task's requests at half the price, into the journal of synthesis.", _batch)
    tasks = tuple(generators.ASKED)
    parser.add_argument("task", choices=tasks, metavar="TASK", help="a task of `synthesize`: %(choices)s")
    parser.add_argument("--count", type=int, help="samples (default: the task's target_samples)")
    parser.add_argument("--input", metavar="NAME|FILE", help="relation rows to build on")
    flags.add_setting(parser, "--max-usd", "api.max_usd")
    flags.add_setting(parser, "--seed", "generation.seed")
    parser.add_argument(
        "--pending-timeout", type=float, default=1800.0, metavar="SECONDS", help="give up on a job that stays queued"
    )
    _add_waiting(parser)


def _add_tests(actions: Any) -> None:
    test = _verb(actions, "test", "Ask a served model, and score its triples.", _test)
    test.add_argument("models", nargs=1, metavar="MODEL")
    test.add_argument("--prompts", nargs="+", metavar="TEXT", help="prompts of your own; their answers are not scored")
    compare = _verb(actions, "compare", "Ask served models the same, the first one the base.", _compare)
    compare.add_argument("models", nargs="+", metavar="MODEL")
    for parser in (test, compare):
        parser.add_argument("--data", metavar="FILE", help="held-out relation rows (default: the guide's five prompts)")
        parser.add_argument("--max-rows", type=int, help="a seeded sample of so many rows")
        parser.add_argument("--system-prompt", metavar="TEXT", help="default: the Ucotron server's own")
        parser.add_argument("--max-tokens", type=int, default=512)
        parser.add_argument("--temperature", type=float, default=0.1)
        parser.add_argument(
            "--deploy", action="store_true", help="deploy adapters for the time of the test; billed by the GPU second"
        )


def _verb(actions: Any, name: str, text: str, handler: flags.Handler) -> argparse.ArgumentParser:
    parser = flags.verb(actions, name, text, handler)
    parser.add_argument("--account-id", metavar="ID", help="default: FIREWORKS_ACCOUNT_ID")
    return parser


def _add_waiting(parser: argparse.ArgumentParser) -> None:
    flags.add_setting(parser, "--poll-interval", "polling.interval", metavar="SECONDS")
    flags.add_setting(parser, "--timeout", "polling.timeout", metavar="SECONDS")


def _opened(args: argparse.Namespace) -> tuple[Any, Any]:
    """Settings and account; a missing key or account ends here."""
    from ucotron_ray.fireworks import stage as vendor

    settings = flags.config_of(args)
    return settings, vendor.account(settings, args.account_id)


def _models(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import account as control

    settings, who = _opened(args)
    tiers = settings.recipe.models.fine_tuning
    of_tier = {getattr(tiers, tier).model_id: tier for tier in ("slm", "small", "medium")}
    entries = [e for e in control.pages(who, "accounts/fireworks/models", "models") if e.get("tunable")]
    entries += list(control.pages(who, f"{who.parent}/models", "models"))
    names = [str(entry.get("name")) for entry in entries]
    for name in names:
        print(f"{of_tier.get(name, ''):<8} {name}")
    for name, tier in of_tier.items():
        if name not in names:
            print(f"{tier:<8} {name}  (the vendor does not list it as tunable)", file=sys.stderr)
    return {"models": names}


def _upload(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import datasets

    _, who = _opened(args)
    uploaded = datasets.upload(who, args.file, dataset_id=args.dataset_id)
    print(uploaded.dataset_id)
    return {**asdict(uploaded), "dataset_id": uploaded.dataset_id}


def _sft(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import stage as vendor
    from ucotron_ray.fireworks import tuning_jobs

    settings, who = _opened(args)
    model = args.base_model or settings.recipe.tier_model.model_id
    kind = tuning_jobs.model_kind(who, model)
    held = _dataset(who, args.evaluation_dataset, "chat") if args.evaluation_dataset else None
    chosen = vendor.sft_config(settings.recipe.sft, held)
    body = tuning_jobs.sft_body(who, _dataset(who, args.dataset, "chat"), model, chosen, kind)
    return _created(args, settings, who, "sft", body)


def _dpo(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import stage as vendor
    from ucotron_ray.fireworks import tuning_jobs

    settings, who = _opened(args)
    kind = tuning_jobs.model_kind(who, args.base_model)
    chosen = vendor.dpo_config(settings.recipe.dpo)
    body = tuning_jobs.dpo_body(who, _dataset(who, args.dataset, "preference"), args.base_model, chosen, kind)
    return _created(args, settings, who, "dpo", body)


def _dataset(who: Any, reference: str, layout: str) -> str:
    """The id of a dataset; a file is uploaded first."""
    from ucotron_ray.fireworks import datasets

    if not Path(reference).is_file():
        return reference
    uploaded = datasets.upload(who, Path(reference))
    if uploaded.layout != layout:
        raise ConfigError(
            "the file is for another kind of job", where=reference, expected=f"{layout} rows", found=uploaded.layout
        )
    return uploaded.dataset_id


def _created(args: argparse.Namespace, settings: Any, who: Any, kind: Any, body: Mapping[str, Any]) -> dict[str, Any]:
    from ucotron_ray.fireworks import stage as vendor
    from ucotron_ray.fireworks import tuning_jobs, waiting

    job, is_new = tuning_jobs.create_job(
        who, kind, body, output_model=args.output_model, wandb=vendor.wandb(settings), attempt=args.again
    )
    if args.wait:
        job = waiting.wait(who, job, vendor.patience(settings))
    elif not is_new and job.state in tuning_jobs.ENDED_BADLY:
        print(f"this job ended as {job.shown_state}; --again {args.again + 1} makes another one", file=sys.stderr)
    print(job.job_id)
    result = {**_shown(job), "new": is_new}
    return {**result, "status": "failed", "exit_code": 1} if job.state in tuning_jobs.ENDED_BADLY else result


def _with_job(work: Callable[[Any, Any, Any], Any]) -> flags.Handler:
    """A handler of one job: looks it up, does the work, prints it."""

    def handle(args: argparse.Namespace) -> dict[str, Any]:
        from ucotron_ray.fireworks import tuning_jobs

        settings, who = _opened(args)
        job = work(settings, who, tuning_jobs.get_job(who, args.job))
        for key, value in _shown(job).items():
            if value is not None:
                print(f"{key:<14} {value}")
        return _shown(job)

    return handle


def _status(args: argparse.Namespace) -> dict[str, Any]:
    return _with_job(lambda settings, who, job: job)(args)


def _wait(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import stage as vendor
    from ucotron_ray.fireworks import waiting

    return _with_job(lambda settings, who, job: waiting.wait(who, job, vendor.patience(settings)))(args)


def _cancel(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import tuning_jobs

    return _with_job(lambda settings, who, job: tuning_jobs.cancel_job(who, job))(args)


def _resume(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import tuning_jobs

    return _with_job(lambda settings, who, job: tuning_jobs.resume_job(who, job))(args)


def _list(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import tuning_jobs

    _, who = _opened(args)
    jobs = sorted(tuning_jobs.list_jobs(who, tuple(args.kind or ("sft", "dpo"))), key=lambda job: job.created or "")
    jobs = jobs[-args.limit :] if args.limit else jobs
    for job in jobs:
        percent = "" if job.percent is None else f"{job.percent:.0f} %"
        print(f"{job.kind:<6} {job.job_id:<44} {job.shown_state:<16} {percent:>6}  {job.created or ''}")
    return {"jobs": [_shown(job) for job in jobs]}


def _batch(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import batch
    from ucotron_ray.fireworks import stage as vendor
    from ucotron_ray.synthesis import stage as synthesis

    with flags.run_of(args, name=None if args.name or args.recipe else args.task) as run:
        who = vendor.account(run.config, args.account_id)
        want = synthesis.wanted(run, args.task, args.count, args.input)
        made = batch.fill(run, want, who, vendor.patience(run.config, pending_timeout=args.pending_timeout))
    for key, value in made.items():
        print(f"{key:<12} {value}", file=sys.stderr)
    print(f"`ucotron-ray synthesize {args.task}` with the same settings takes these answers", file=sys.stderr)
    return made


def _test(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.fireworks import served

    settings, who = _opened(args)
    asking = served.asking(settings, args.system_prompt, args.max_tokens, args.temperature)
    if args.prompts:
        answers = served.answers(settings, who, args.models[0], args.prompts, asking, deploy=args.deploy)
        for answer in answers:
            print(f"{answer['prompt']}\n  → {answer['error'] or answer['response']}")
        return {"model": args.models[0], "answers": answers}
    tested = served.tested(settings, who, args.models, _rows(args, settings), asking, deploy=args.deploy)[0]
    for answer in tested["answers"]:
        print(f"F1 {answer['f1']:.2f}  keywords {answer['keyword_score']:.0%}  {answer['prompt'][:80]}")
    print("  ".join(f"{key} {tested['summary'][key]:.3f}" for key in ("f1", "precision", "recall", "keyword_score")))
    return tested


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.evaluation import endpoint
    from ucotron_ray.fireworks import served

    if len(args.models) < 2:
        raise ConfigError("two models are needed", expected="MODEL MODEL …, the first one the base", found="one")
    settings, who = _opened(args)
    asking = served.asking(settings, args.system_prompt, args.max_tokens, args.temperature)
    compared = endpoint.compare(
        served.tested(settings, who, args.models, _rows(args, settings), asking, deploy=args.deploy)
    )
    print(endpoint.report(compared))
    return compared


def _rows(args: argparse.Namespace, settings: Any) -> Any:
    from ucotron_ray.fireworks import served

    return served.rows(settings, Path(args.data) if args.data else None, args.max_rows)


def _shown(job: Any) -> dict[str, Any]:
    return {"job": job.job_id, **asdict(replace(job, state=job.shown_state))}
