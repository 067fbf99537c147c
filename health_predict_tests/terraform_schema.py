"""The AWS provider's schema, as far as `iac/` uses it: names, types and what is required.

Made once for a version of the provider, from a package that carries its schema, and kept beside
as `aws_provider_schema.json`:

    npm pack @cdktn/provider-aws@24.1.0 && tar xzf cdktn-provider-aws-24.1.0.tgz
    .venv/bin/python -m health_predict_tests.terraform_schema package

The package is under MPL-2.0, which lets a part be kept with its source and licence said; the file
says both, and holds facts about the interface alone, no code. Who has the provider itself gets the
same, and more, from `terraform providers schema -json`. Whether the tests catch what Terraform
would is in `test_terraform`; serving the schema to Terraform is `terraform_provider`.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from health_predict.settings import ROOT

SCHEMA = Path(__file__).parent / "aws_provider_schema.json"
IAC = ROOT / "iac"

_USED = re.compile(r'^(resource|data) "(aws_\w+)"', re.MULTILINE)
_TOP = re.compile(r"^class (\w+) extends cdktn\.Terraform\w+ \{$", re.MULTILINE)
_ARGUMENT = re.compile(
    r"^ +(\w+): \{\n +value: (.*),\n +isBlock: (true|false),\n +type: \"(\w+)\",\n"
    r" +storageClassType: \"(\w+)\"",
    re.MULTILINE,
)
_DECLARED = re.compile(r"#(\w+) [^}]*\}.*?\*/\s+readonly \w+(\??):", re.DOTALL)
_COMPUTED = re.compile(
    r"// (\w+) - computed: true, optional: false, required: false\n(.*?;)\n", re.DOTALL
)
_NESTED = re.compile(r'= new (\w+?)(List|Map|OutputReference)\(this, "\w+"(?:, (true|false))?')
_SIMPLE = re.compile(r"return (cdktn\.Fn\.tolist\()?this\.get(\w+?)Attribute\('")
_TYPES: dict[str, Any] = {
    "string": "string",
    "number": "number",
    "boolean": "bool",
    "list": ["list", "string"],
    "stringList": ["list", "string"],
    "numberList": ["list", "number"],
    "stringMap": ["map", "string"],
    "booleanMap": ["map", "bool"],
    "numberMap": ["map", "number"],
}
# Filled in by the provider where nothing is given. The package does not say which arguments are;
# these are for every type.
_FILLED_IN = {"id", "region", "tags_all"}


def used(folder: Path = IAC) -> set[tuple[str, str]]:
    """Returns what kinds of things a folder's Terraform has: (`resource` or `data`, type)."""
    texts = [path.read_text() for path in sorted(folder.glob("*.tf"))]
    return {(kind, name) for text in texts for kind, name in _USED.findall(text)}


def extract(package: Path, wanted: set[tuple[str, str]]) -> dict[str, Any]:
    """Returns the schema of some types, in the form of `terraform providers schema -json`.

    Args:
        package: the unpacked npm package.
        wanted: as `used` gives them.

    Raises:
        FileNotFoundError: the package has no such type.
    """
    about = json.loads((package / "package.json").read_text())
    provider = package / "lib" / "provider" / "index.js"
    [version] = set(re.findall(r"providerVersion: '([\d.]+)'", provider.read_text()))
    found: dict[str, dict[str, Any]] = {"resource": {}, "data": {}}
    for kind, name in sorted(wanted):
        folder = name.removeprefix("aws_").replace("_", "-")
        path = package / "lib" / (f"data-aws-{folder}" if kind == "data" else folder)
        found[kind][name] = {"block": _of(path / "index.js")}
    return {
        "source": f"{about['name']} {about['version']} (npm), lib/*/index.js: names, types, flags",
        "licence": f"{about['license']}, (c) HashiCorp, Inc. and IBM Corp.; "
        "https://www.mozilla.org/MPL/2.0/",
        "provider_version": version,
        "provider": {"block": _of(provider)},
        "resource_schemas": found["resource"],
        "data_source_schemas": found["data"],
    }


@dataclass(frozen=True)
class _Source:
    """A type's generated code, `index.js`, and its declarations, `index.d.ts`."""

    code: str
    declarations: str

    def class_(self, name: str) -> str:
        return self._from(self.code, f"\nclass {name} extends ")

    def interface(self, name: str) -> str:
        return self._from(self.declarations, f"\nexport interface {name} ")

    def function(self, name: str) -> str:
        return self._from(self.code, f"\nfunction {name}(")

    @staticmethod
    def _from(text: str, opening: str) -> str:
        if opening not in text:
            return ""
        begin = text.index(opening)
        return text[begin : text.index("\n}\n", begin)]


def _of(path: Path) -> dict[str, Any]:
    source = _Source(path.read_text(), path.with_name("index.d.ts").read_text())
    [top] = _TOP.findall(source.code)
    body = source.class_(top)
    arguments = body[body.index("synthesizeHclAttributes()") :]
    return _block(source, body, arguments, source.interface(f"{top}Config"))


def _block(source: _Source, body: str, arguments: str, declared: str) -> dict[str, Any]:
    required = {name for name, optional in _DECLARED.findall(declared) if not optional}
    attributes, nested = {}, {}
    for name, value, is_block, whole, kind in _ARGUMENT.findall(arguments):
        if is_block == "true":
            many = "listMapper" in value
            nested[name] = _nested(source, kind, whole, many=many, required=name in required)
        else:
            flag = {"required": True} if name in required else {"optional": True}
            attributes[name] = {"type": _given_type(source, whole, kind)} | flag
            if name in _FILLED_IN and name not in required:
                attributes[name]["computed"] = True
    for name, code in _COMPUTED.findall(body):
        attributes[name] = {"type": _computed_type(source, code), "computed": True}
    return {"attributes": attributes} | ({"block_types": nested} if nested else {})


def _nested(
    source: _Source, kind: str, whole: str, *, many: bool, required: bool
) -> dict[str, Any]:
    struct = kind if whole == "struct" else kind.removesuffix("List")
    return (
        {
            "nesting_mode": "single" if whole == "struct" else whole,
            "block": _struct(source, struct),
        }
        | ({"min_items": 1} if required else {})
        | ({} if many or whole == "struct" else {"max_items": 1})
    )


def _struct(source: _Source, name: str) -> dict[str, Any]:
    body = source.class_(f"{name}OutputReference")
    arguments = source.function(f"{name[0].lower()}{name[1:]}ToHclTerraform")
    return _block(source, body, arguments, source.interface(name))


def _given_type(source: _Source, whole: str, kind: str) -> Any:
    if kind in _TYPES:
        simple = _TYPES[kind]
        return ["set", simple[1]] if whole == "set" else simple
    return [whole, _object(source, kind.removesuffix("List"))]


def _computed_type(source: _Source, code: str) -> Any:
    nested = _NESTED.search(code)
    if "new cdktn.StringMap(" in code:
        return _TYPES["stringMap"]
    if nested:
        name, many, is_set = nested.groups()
        whole = {"List": "set" if is_set == "true" else "list", "Map": "map"}.get(many)
        inner = _object(source, name)
        return [whole, inner] if whole else inner
    [(is_set, name)] = _SIMPLE.findall(code)
    simple = _TYPES[name[0].lower() + name[1:]]
    return ["set", simple[1]] if is_set else simple


def _object(source: _Source, name: str) -> Any:
    block = _struct(source, name)
    fields = {field: about["type"] for field, about in block["attributes"].items()}
    for field, about in block.get("block_types", {}).items():
        inner = {k: v["type"] for k, v in about["block"]["attributes"].items()}
        fields[field] = [about["nesting_mode"], ["object", inner]]
    return ["object", fields]


if __name__ == "__main__":
    schema = extract(Path(sys.argv[1]), used())
    SCHEMA.write_text(json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n")
