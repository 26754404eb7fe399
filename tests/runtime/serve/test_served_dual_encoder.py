"""A SigLIP on Ray: its index is built by actors, and it is served."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from analysis.two_towers import write_two_towers
from conftest import SmallWorld

from groundray import search
from groundray.image_search.query import Search
from groundray.runtime.serve import deployment
from groundray.runtime.serve.deployment import Arguments

pytestmark = pytest.mark.thorough  # one more model behind the service of test_deployment.py


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_siglip_builds_its_index_on_the_cluster_and_is_served(world: SmallWorld, tmp_path: Path) -> None:
    folder = str(write_two_towers(tmp_path / "siglip", "siglip", ("a", "red", "heart")))
    images, index, found = str(world.shards / "captions" / "val"), str(tmp_path / "index"), tmp_path / "found.json"
    options = ["--checkpoint", folder, "--images", images, "--index", index]
    assert search.main([*options, "--text", "red heart", "--k", "5", "--json", str(found)]) == 0
    (answer,) = json.loads(found.read_text())
    expected = Search.open(folder, images, str(tmp_path / "other")).find("red heart", k=5)
    assert [hit["id"] for hit in answer["hits"]] == [hit.id for hit in expected]
    np.testing.assert_allclose([hit["score"] for hit in answer["hits"]], [hit.score for hit in expected], atol=1e-5)

    with deployment.serving(Arguments(checkpoint=folder, images=images, index=index), "127.0.0.1", 0) as address:
        with urlopen(f"{address}/healthz", timeout=60) as response:
            assert json.load(response)["kind"] == "siglip"
        with urlopen(f"{address}/match-map?text=red%20heart&image={expected[0].id}", timeout=60) as response:
            tokens = json.load(response)["tokens"]
    assert [token["text"] for token in tokens] == ["red heart", "red", "heart"]
