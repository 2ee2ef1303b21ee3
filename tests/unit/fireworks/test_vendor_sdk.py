"""The simulator speaks the vendor's protocol, not ours: the vendor's own SDK says so."""

import json

import pytest

from tests.vendor import KEY, TINY, chat_file, pairs_file, vending
from ucotron_ray.fireworks.dataset_rows import prepared

fireworks = pytest.importorskip("fireworks", reason="the vendor's SDK (fireworks-ai) is not installed")


@pytest.fixture
def sdk(monkeypatch):
    with vending(monkeypatch, page_size=2) as vendor:
        yield fireworks.Fireworks(base_url=vendor.url, api_key=KEY, account_id="acme", max_retries=0), vendor


def test_it_lists_models_and_chats(sdk):
    client, _ = sdk
    assert TINY in [model.name for model in client.models.list(account_id="fireworks")]
    answer = client.chat.completions.create(
        model="accounts/simulator/models/teacher",
        messages=[{"role": "user", "content": "Text:\nAda Lovelace works at Acme."}],
        temperature=0.1,
    )
    assert json.loads(answer.choices[0].message.content)["relations"][0]["relation"] == "works_at"
    assert answer.usage.completion_tokens > 0


def test_it_uploads_trains_and_asks_the_trained_model(sdk, tmp_path):
    client, _ = sdk
    made = client.datasets.create(
        dataset_id="rows", dataset={"user_uploaded": {}, "example_count": "5", "format": "CHAT"}
    )
    assert made.state == "UPLOADING"
    client.datasets.upload("rows", file=chat_file(tmp_path / "rows.jsonl"))
    assert client.datasets.get("rows").state == "READY"
    job = client.supervised_fine_tuning_jobs.create(
        dataset="accounts/acme/datasets/rows",
        base_model=TINY,
        epochs=2,
        learning_rate=1e-4,
        lora_rank=8,
        max_context_length=2048,
        supervised_fine_tuning_job_id="sdk-job",
        output_model="accounts/acme/models/sdk-model",
        wandb_config={"enabled": True, "project": "p", "api_key": "k"},
    )
    assert job.state == "JOB_STATE_CREATING"
    assert job.estimated_cost.currency_code == "USD"
    while job.state != "JOB_STATE_COMPLETED":
        job = client.supervised_fine_tuning_jobs.get("sdk-job")
    assert job.job_progress.percent == 100
    assert client.models.get("sdk-model").peft_details.r == 8
    deployment = client.deployments.create(
        base_model="accounts/acme/models/sdk-model", deployment_id="d", min_replica_count=0, deployment_shape="default"
    )
    while deployment.state != "READY":
        deployment = client.deployments.get("d")
    served = f"accounts/acme/models/sdk-model#{deployment.name}"
    assert client.chat.completions.create(model=served, messages=[{"role": "user", "content": "Hi"}]).choices
    client.deployments.delete("d")
    with pytest.raises(fireworks.NotFoundError):
        client.chat.completions.create(model=served, messages=[{"role": "user", "content": "Hi"}])


def test_it_makes_preference_and_batch_jobs_and_reads_their_results(sdk, tmp_path):
    client, _ = sdk
    with prepared(pairs_file(tmp_path / "pairs.jsonl")) as file:
        client.datasets.create(dataset_id="pairs", dataset={"user_uploaded": {}, "example_count": "4"})
        client.datasets.upload("pairs", file=file.path)
    client.dpo_jobs.create(
        dataset="accounts/acme/datasets/pairs",
        dpo_job_id="dpo",
        loss_config={"method": "DPO", "dpo": {"beta": 0.1}},
        training_config={"base_model": TINY, "epochs": 1, "lora_rank": 8, "output_model": "accounts/acme/models/m"},
    )
    client.dpo_jobs.cancel("dpo", body={})
    assert client.dpo_jobs.get("dpo").state == "JOB_STATE_CANCELLED"
    client.dpo_jobs.resume("dpo", body={})
    assert client.dpo_jobs.get("dpo").state != "JOB_STATE_CANCELLED"

    requests = tmp_path / "batch.jsonl"
    lines = [{"custom_id": str(n), "body": {"messages": [{"role": "user", "content": "Hi"}]}} for n in range(4)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    client.datasets.create(dataset_id="asked", dataset={"user_uploaded": {}, "example_count": "4"})
    client.datasets.upload("asked", file=requests)
    job = client.batch_inference_jobs.create(
        batch_inference_job_id="batch",
        model="accounts/simulator/models/teacher",
        input_dataset_id="accounts/acme/datasets/asked",
        output_dataset_id="accounts/acme/datasets/answers",
    )
    while job.state != "JOB_STATE_COMPLETED":
        job = client.batch_inference_jobs.get("batch")
    assert job.job_progress.output_rows == 4
    files = client.datasets.get_download_endpoint("answers").filename_to_signed_urls
    assert [name.rpartition("/")[2] for name in files] == ["BIJOutputSet.jsonl", "error-data"]


def test_it_pages_and_it_is_refused_in_its_own_words(sdk, tmp_path):
    client, _ = sdk
    for number in range(5):
        client.datasets.create(dataset_id=f"d{number}", dataset={"user_uploaded": {}, "example_count": "3"})
    assert [data.name.rpartition("/")[2] for data in client.datasets.list()] == [f"d{number}" for number in range(5)]
    with pytest.raises(fireworks.ConflictError, match="already exists"):
        client.datasets.create(dataset_id="d0", dataset={"user_uploaded": {}, "example_count": "3"})
    with pytest.raises(fireworks.BadRequestError, match="example_count is required"):
        client.datasets.create(dataset_id="new", dataset={"user_uploaded": {}})
    with pytest.raises(fireworks.NotFoundError):
        client.dpo_jobs.get("none")
    other = fireworks.Fireworks(base_url=str(client.base_url), api_key="wrong", account_id="acme", max_retries=0)
    with pytest.raises(fireworks.PermissionDeniedError):
        list(other.datasets.list())


def test_unknown_fields_are_refused(sdk, tmp_path):
    client, _ = sdk
    with pytest.raises(fireworks.BadRequestError, match="unknown field"):
        client.supervised_fine_tuning_jobs.create(dataset="d", extra_body={"epoch": 3})
