"""Settings of sets at URLs, and where such sets may be named."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_audio_train.config.augment import AugmentConfig, NoiseConfig, augment_problems
from qwen_audio_train.config.data import DataConfig, Stage
from qwen_audio_train.config.load import compose, to_yaml
from qwen_audio_train.config.remote import URL_SCHEMES, RemoteConfig, remote_problems
from qwen_audio_train.config.sets import set_problems
from qwen_audio_train.config.validate_data import data_problems
from qwen_audio_train.errors import ConfigError


def test_the_defaults_have_no_problem():
    assert list(remote_problems("data.remote", RemoteConfig())) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cache_dir": ""}, "data.remote.cache_dir is empty"),
        ({"cache_bytes": 100}, "data.remote.cache_bytes=100 cannot hold one block"),
        ({"max_request_bytes": 100}, "data.remote.max_request_bytes=100 cannot hold one block"),
        ({"cache_bytes": 0}, "data.remote.cache_bytes=0 must be at least 1"),
        ({"block_bytes": 0}, "data.remote.block_bytes=0 must be at least 1"),
        ({"min_bytes_per_second": 0}, "data.remote.min_bytes_per_second=0"),
        ({"retries": -1}, "data.remote.retries=-1 must be 0 or more"),
        ({"readahead_threads": -1}, "data.remote.readahead_threads=-1 must be 0 or more"),
        ({"coalesce_gap_bytes": -1}, "data.remote.coalesce_gap_bytes=-1"),
        ({"timeout_seconds": 0.0}, "data.remote.timeout_seconds=0.0 must be above 0"),
        ({"timeout_seconds": float("inf")}, "data.remote.timeout_seconds=inf"),
        ({"backoff_seconds": -1.0}, "data.remote.backoff_seconds=-1.0"),
        ({"backoff_cap_seconds": 0.1}, "data.remote.backoff_cap_seconds=0.1 is below backoff_seconds"),
        ({"storage_options": {"secret": "x"}}, "data.remote.storage_options has secret"),
        ({"storage_options": {"headers": {"Authorization": "x"}}}, "data.remote.storage_options has headers.Author"),
    ],
)
def test_a_mistake_is_the_one_problem(change, says):
    (problem,) = remote_problems("data.remote", replace(RemoteConfig(), **change))
    assert says in problem


def test_public_buckets_and_endpoints_are_no_secrets():
    options = {"token": "anon", "anon": True, "endpoint_url": "http://host:9000", "use_ssl": False}
    assert list(remote_problems("data.remote", RemoteConfig(storage_options=options))) == []


@pytest.mark.parametrize("scheme", URL_SCHEMES)
def test_sets_may_lie_at_these_urls(scheme):
    assert list(set_problems("data.train", f"{scheme}://host/set", required=True)) == []


@pytest.mark.parametrize(
    "location", ["ftp://me:word@host/set", "file:///set", "pipe:cat set", "simplecache::s3://bucket/set", "S3://b/set"]
)
def test_others_are_refused_with_what_is_possible(location):
    (problem,) = set_problems("data.train", location, required=True)
    assert problem.startswith("data.train names ")
    assert "https://, s3://" in problem
    assert "word" not in problem


def test_a_url_of_nowhere_is_refused():
    (problem,) = set_problems("data.train", "s3:///", required=True)
    assert "no server or bucket" in problem


def test_noises_may_lie_at_a_url():
    noise = NoiseConfig(probability=0.5, shard_set="https://host/noises")
    assert list(augment_problems("data.augment", AugmentConfig(noise=noise))) == []
    (problem,) = augment_problems("data.augment", AugmentConfig(noise=replace(noise, shard_set="ftp://host/noises")))
    assert problem.startswith("data.augment.noise.shard_set names 'ftp:'")


def test_problems_come_with_all_others():
    data = DataConfig(train="ftp://host/set", num_workers=-1, remote=RemoteConfig(retries=-1, block_bytes=0))
    assert len(list(data_problems(data, Stage.sft))) == 4


@pytest.mark.parametrize(("recipe", "group"), [("pretrain", "data"), ("evaluate", "evaluation"), ("export", "export")])
def test_every_recipe_has_the_group_and_checks_it(recipe, group):
    with pytest.raises(ConfigError, match=rf"{group}\.remote\.retries=-1"):
        compose(recipe, [f"{group}.remote.retries=-1"])
    with pytest.raises(ConfigError, match=r"remote\.retry is no setting|retry"):
        compose(recipe, [f"+{group}.remote.retry=1"])


def test_options_of_the_store_are_free_and_kept(tmp_path):
    config = compose(
        "pretrain",
        [
            f"run.dir={tmp_path}",
            "run.max_steps=1",
            "model=tiny",
            "data.train=s3://bucket/set",
            "+data.remote.storage_options.endpoint_url=http://host:9000",
        ],
    )
    assert config.data.remote.storage_options == {"endpoint_url": "http://host:9000"}
    assert "endpoint_url: http://host:9000" in to_yaml(config)
