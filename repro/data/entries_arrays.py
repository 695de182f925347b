"""Registry entries of the small-image sets: MNIST family, CIFAR-10 and its relatives, SVHN, STL-10."""

from repro.data import readers
from repro.data.listing import stored_loader
from repro.data.registry import Archive, Contents, DatasetEntry, Edition


def _idx_archives(checksums: dict[str, str], base: str) -> tuple[Archive, ...]:
    return tuple(Archive(file, sha256=digest, url=base + file) for file, digest in checksums.items())


_MNIST = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}

ENTRIES: tuple[DatasetEntry, ...] = (
    DatasetEntry(
        name="mnist",
        title="MNIST handwritten digits, 28x28 grey",
        licence="CC BY-SA 3.0",
        homepage="http://yann.lecun.com/exdb/mnist/",
        splits={"train": 60_000, "test": 10_000},
        loader=stored_loader("mnist", readers.mnist, 28),
        editions=(Edition("official", _idx_archives(_MNIST, "https://ossci-datasets.s3.amazonaws.com/mnist/")),),
        contents=tuple(Contents(file, (1,)) for file in _MNIST),
        instructions="repro data prepare mnist (downloads 11 MB), or --from a folder with the four .gz files.",
    ),
    DatasetEntry(
        name="fashion_mnist",
        title="Fashion-MNIST garments, 28x28 grey",
        licence="MIT",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        splits={"train": 60_000, "test": 10_000},
        loader=stored_loader("fashion_mnist", readers.fashion_mnist, 28),
        editions=(
            Edition(
                "official",
                _idx_archives(_FASHION_MNIST, "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"),
            ),
        ),
        contents=tuple(Contents(file, (1,)) for file in _FASHION_MNIST),
        instructions="repro data prepare fashion_mnist (downloads 30 MB), or --from a folder with the four .gz files.",
    ),
    DatasetEntry(
        name="emnist_digits",
        title="EMNIST digits, 28x28 grey",
        licence="US government work; cite Cohen et al. 2017",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        splits={"train": 240_000, "test": 40_000},
        loader=stored_loader("emnist_digits", readers.emnist_digits, 28),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "gzip.zip",
                        md5="58c8d27c78d21e728a6bc7b3cc06412e",
                        url="https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
                        only="gzip/emnist-digits-*",
                    ),
                ),
            ),
        ),
        contents=(Contents("gzip/emnist-digits-*-ubyte.gz"),),
        instructions="repro data prepare emnist_digits (downloads 560 MB), or --from a folder with gzip.zip.",
    ),
    DatasetEntry(
        name="cifar10",
        title="CIFAR-10, 32x32, lossless (binary version)",
        licence="research use, cite Krizhevsky 2009",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        splits={"train": 50_000, "test": 10_000},
        loader=stored_loader("cifar10", readers.cifar10, 32),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "cifar-10-binary.tar.gz",
                        md5="c32a1d4ab5d03f1284b67883e8d87530",
                        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                    ),
                ),
            ),
        ),
        contents=(Contents("cifar-10-batches-bin/*_batch*.bin", (6,)),),
        instructions="repro data prepare cifar10 (downloads 162 MB), or --from a folder with cifar-10-binary.tar.gz.",
    ),
    DatasetEntry(
        name="cifar10_jpg",
        title="CIFAR-10 re-encoded as JPEG, 32x32: labels right, pixels lossy",
        licence="research use, cite Krizhevsky 2009",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        splits={"train": 50_000, "test": 10_000},
        loader=stored_loader("cifar10_jpg", readers.cifar10_jpg, 32),
        editions=(
            Edition(
                "JPEG copy",
                (
                    Archive(
                        "cifar10-jpg.tar.xz",
                        sha256="402906567b28e08236939113b1f8888f7b5d306dba9f386cd9ebd49fe4279898",
                    ),
                ),
            ),
        ),
        contents=(Contents("train/*/*.jpg", (50_000,)), Contents("test/*/*.jpg", (10_000,))),
        instructions="repro data prepare cifar10_jpg --from <folder holding the archives>. Lossless: cifar10.",
    ),
    DatasetEntry(
        name="svhn",
        title="Street View House Numbers, cropped digits 32x32",
        licence="non-commercial research",
        homepage="http://ufldl.stanford.edu/housenumbers/",
        splits={"train": 73_257, "test": 26_032},
        loader=stored_loader("svhn", readers.svhn, 32),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "train_32x32.mat",
                        md5="e26dedcc434d2e4c54c9b2d4a06d8373",
                        url="http://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                    ),
                    Archive(
                        "test_32x32.mat",
                        md5="eb5a983be6a315427106f1b164d9cef3",
                        url="http://ufldl.stanford.edu/housenumbers/test_32x32.mat",
                    ),
                ),
            ),
        ),
        contents=(Contents("train_32x32.mat", (1,)), Contents("test_32x32.mat", (1,))),
        instructions="repro data prepare svhn (downloads 240 MB), or --from a folder with the two .mat files.",
    ),
    DatasetEntry(
        name="stl10",
        title="STL-10, 96x96",
        licence="ImageNet terms: non-commercial research",
        homepage="https://cs.stanford.edu/~acoates/stl10/",
        splits={"train": 5_000, "test": 8_000},
        loader=stored_loader("stl10", readers.stl10, 96),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "stl10_binary.tar.gz",
                        md5="91f7769df0f17e558f3565bffb0c7dfb",
                        url="http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                        only="stl10_binary/t*",
                    ),
                ),
            ),
        ),
        contents=(Contents("stl10_binary/t*_[Xy].bin", (4,)),),
        instructions="repro data prepare stl10 (downloads 2.6 GB), or --from a folder with stl10_binary.tar.gz.",
    ),
    DatasetEntry(
        name="cinic10",
        title="CINIC-10: CIFAR-10 extended with downscaled ImageNet images, 32x32",
        licence="MIT; images under ImageNet terms",
        homepage="https://datashare.ed.ac.uk/handle/10283/3192",
        splits={"train": 90_000, "val": 90_000, "test": 90_000},
        loader=stored_loader("cinic10", readers.cinic10, 32, cached=True),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "CINIC-10.tar.gz",
                        url="https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
                    ),
                ),
            ),
        ),
        contents=tuple(Contents(f"{split}/*/*.png", (90_000,)) for split in ("train", "valid", "test")),
        instructions="repro data prepare cinic10 (downloads 690 MB), or --from a folder with CINIC-10.tar.gz.",
    ),
)
