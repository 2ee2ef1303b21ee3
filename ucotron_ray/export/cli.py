"""The verb `export`."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import ConfigError


def add_export(verbs: Any) -> None:
    """`export`: merged model and bundle."""
    parser = flags.verb(
        verbs,
        "export",
        "Merge an adapter and make a bundle: ONNX in float32, int8 and int4, and GGUF, each compared with what it was "
        "made of. A bundle that misses a gate is published as failed (exit 1).",
        _export,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="an adapter's name or path, or a base model")
    parser.add_argument("--model-dir", type=Path, metavar="DIR", help="a plain model directory instead of MODEL")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="also write the bundle there")
    parser.add_argument("--revision", metavar="REV", help="commit, branch or tag of a MODEL of the hub, as MODEL@REV")
    flags.add_setting(parser, "--data", "export.data", metavar="NAME|FILE")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only say how large the bundle and its memory become, and whether its prompts are those of transformers",
    )


def _export(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs, requirements
    from ucotron_ray.data import uses
    from ucotron_ray.data.stage import data_of
    from ucotron_ray.export import stage as export
    from ucotron_ray.models import inspection
    from ucotron_ray.models import stage as models

    if (args.model is None) == (args.model_dir is None):
        raise ConfigError("one model is needed", expected="MODEL or --model-dir DIR", found="both or none")
    reference = args.model or str(args.model_dir)
    with flags.run_of(args, name=models.short_name(reference)) as run:
        if args.output_dir:
            outputs.refuse_mixing(args.output_dir, run.store.root, "bundle")
        if args.dry_run:
            return _planned(run, reference, args.revision)
        base, adapter = models.model(run, reference, args.revision)
        requirements.require_packages("ray", "torch", "transformers", "peft", "gguf", *requirements.EXPORT)
        inspection.check(base)
        data = uses.rows_to_choose_by(run, run.config.recipe.export.data, data_of(run, adapter))
        bundle = export.export(run, base, adapter, data)
        if args.output_dir:
            outputs.copy_out(bundle, args.output_dir)
    figures = bundle.manifest.metrics
    return {"artifact": str(bundle.path), "bundle": str(bundle.path), "parity": True, **figures}


def _planned(run: Any, reference: str, revision: str | None) -> dict[str, Any]:
    from ucotron_ray.export import plan as plans
    from ucotron_ray.export import stage as export
    from ucotron_ray.models import base as base_models
    from ucotron_ray.models import inspection
    from ucotron_ray.models import stage as models

    adapter = models.adapter_of(run, reference, revision)
    # A plan asks no hub which commit it is of.
    base = models.base_of(adapter, run.store) if adapter else base_models.located(reference, revision)
    # First: of a family whose sizes nobody knows it is worth knowing too.
    prompt = inspection.check(base)
    print(f"prompt      {prompt}")
    made = export.plan(run, base)
    if made is None:
        raise ConfigError(
            "the sizes of this model are not known here",
            where=base.reference,
            expected="a model of the Llama, Qwen2 or Qwen3 family whose config.json is on this machine",
        )
    print("\n".join(plans.described(made)))
    return {"artifact": None, "plan": made.as_dict(), "prompt": prompt}
