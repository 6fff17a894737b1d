"""Which file of a checkpoint's directory has which tensor. Knows no models, and reads headers only."""

from pathlib import Path

from engine.refusal import BrokenFile, UnknownModel, shown
from loaders.json_file import read_json
from loaders.safetensors import TensorFile, open_tensors

INDEX = "model.safetensors.index.json"


def find_tensors(directory: Path) -> dict[str, TensorFile]:
    """The file of every tensor of a checkpoint."""
    if (directory / INDEX).is_file():
        return find_indexed(directory)
    shards = sorted(directory.glob("*.safetensors"))
    single = directory / "model.safetensors"
    if single in shards:
        shards = [single]
    shards = [path for path in shards if not path.name.startswith(("adapter", "."))]
    if not shards:
        raise UnknownModel(f"{directory} has no weights: a model.safetensors or an index of shards is wanted")
    found: dict[str, TensorFile] = {}
    for path in shards:
        file = open_tensors(path)
        if twice := found.keys() & file.header.tensors.keys():
            raise BrokenFile(f"{directory} has the tensor {min(twice)} in two files")
        found |= dict.fromkeys(file, file)
    return found


def find_indexed(directory: Path) -> dict[str, TensorFile]:
    weight_map = read_json(directory / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BrokenFile(f"{directory / INDEX} has no weight_map: an object of tensors and their files is wanted")
    files: dict[str, TensorFile] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:  # nothing outside the directory is opened
            raise BrokenFile(f"{directory / INDEX} puts {shown(name)} into {shown(shard)}; a file's name is wanted")
        if shard not in files:
            if not (directory / shard).is_file():
                raise BrokenFile(f"{directory} lacks the shard {shard}, which its index names")
            files[shard] = open_tensors(directory / shard)
        if name not in files[shard]:
            raise BrokenFile(f"{directory / shard} lacks the tensor {shown(name)}, which its index puts there")
    for shard, file in files.items():
        for name in file:
            if weight_map.get(name) != shard:
                raise BrokenFile(f"{directory / shard} has {shown(name)}, which its index does not list there")
    return {name: files[shard] for name, shard in weight_map.items()}
