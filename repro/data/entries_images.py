"""Registry entries of the photograph sets, of localisation data, and of metadata and weights."""

from repro.data import readers
from repro.data.listing import stored_loader
from repro.data.registry import Archive, Contents, DatasetEntry, Edition

_RESEARCH = "non-commercial research"
_FROM = "repro data prepare {name} --from <folder holding the archives>"

_PHOTOGRAPHS = (
    DatasetEntry(
        name="dogs_vs_cats",
        title="Kaggle dogs vs cats (all 25,000 or a part of 2,002)",
        licence="Kaggle / Asirra research use",
        homepage="https://www.kaggle.com/c/dogs-vs-cats",
        splits={"train": 20_000, "test": 5_000},
        loader=stored_loader("dogs_vs_cats", readers.dogs_vs_cats, 224),
        editions=(
            Edition("Kaggle", (Archive("train.zip"),)),
            Edition(
                "2,002 images, short side 224",
                (
                    Archive(
                        "dogs-vs-cats_2002_s224.tar",
                        sha256="955893af05b868ac1c6bb494e631a1a54709ace5a80137dff25e25a5b695fde2",
                    ),
                ),
            ),
        ),
        contents=(Contents("train/*.jpg", (2_002, 25_000)),),
        instructions="Get train.zip from Kaggle after signing in, then " + _FROM.format(name="dogs_vs_cats"),
    ),
    DatasetEntry(
        name="oxford_pets",
        title="Oxford-IIIT Pet, 37 breeds, trimaps",
        licence="CC BY-SA 4.0",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        splits={"train": 3_680, "test": 3_669},
        loader=stored_loader("oxford_pets", readers.oxford_pets, 224, cached=True),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "images.tar.gz",
                        md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
                        url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/images.tar.gz",
                    ),
                    Archive(
                        "annotations.tar.gz",
                        md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                        url="https://www.robots.ox.ac.uk/~vgg/data/pets/data/annotations.tar.gz",
                    ),
                ),
            ),
        ),
        contents=(
            Contents("annotations/trainval.txt", (1,)),
            Contents("annotations/test.txt", (1,)),
            Contents("images/*.jpg"),
            Contents("annotations/trimaps/*.png"),
        ),
        instructions="repro data prepare oxford_pets (downloads 810 MB), or --from a folder with the two archives.",
    ),
    DatasetEntry(
        name="caltech256",
        title="Caltech-256 with clutter: 257 classes, 60 training and 20 test images each",
        licence="CC BY 4.0",
        homepage="https://data.caltech.edu/records/20087",
        splits={"train": 15_420, "test": 5_140},
        loader=stored_loader("caltech256", readers.caltech256, 224, cached=True),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "256_ObjectCategories.tar",
                        md5="67b4f42ca05d46448c6bb8ecd2220f6d",
                        url="https://data.caltech.edu/records/nyy15-4j048/files/256_ObjectCategories.tar",
                    ),
                ),
            ),
        ),
        contents=(Contents("256_ObjectCategories/*/*.jpg"),),
        instructions="repro data prepare caltech256 (downloads 1.2 GB), or --from a folder with the archive.",
    ),
    DatasetEntry(
        name="food101",
        title="Food-101",
        licence="images belong to foodspotting.com's users; research use",
        homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        splits={"train": 75_750, "test": 25_250},
        loader=stored_loader("food101", readers.food101, 224, cached=True),
        editions=(
            Edition(
                "official",
                (
                    Archive(
                        "food-101.tar.gz",
                        md5="85eeb15f3717b99a5da872d97d918f87",
                        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                    ),
                ),
            ),
        ),
        contents=(
            *(Contents(f"food-101/meta/{part}.txt", (1,)) for part in ("classes", "train", "test")),
            Contents("food-101/images/*/*.jpg", (101_000,)),
        ),
        instructions="repro data prepare food101 (downloads 5 GB), or --from a folder with food-101.tar.gz.",
    ),
)

_IMAGENET = (
    DatasetEntry(
        name="imagenet",
        title="ImageNet folders: test = official validation set as val/<synset>/*.JPEG",
        licence=_RESEARCH,
        homepage="https://image-net.org/",
        splits={"test": 50_000},
        loader=stored_loader("imagenet", readers.imagenet, 224, cached=True),
        contents=(Contents("val/n*/*.JPEG"),),
        instructions="Sign in at image-net.org, get ILSVRC2012_img_val.tar, sort it into folders val/<synset>/ and "
        "put (or link) val into the folder imagenet of the data root.",
    ),
    DatasetEntry(
        name="imagenet_sample",
        title="900 ImageNet images, one per class (probably training images), short side 256",
        licence=_RESEARCH,
        homepage="https://image-net.org/",
        splits={"test": 900},
        loader=stored_loader("imagenet_sample", readers.imagenet_sample, 224, cached=True),
        editions=(
            Edition(
                "900 images",
                (
                    Archive(
                        "imagenet-sample-900_s256.tar",
                        sha256="4702d944e5f2d9e889b76d4ca3a6b0bb6aa049826ff7a5f415d1841673fd3225",
                    ),
                ),
            ),
        ),
        contents=(Contents("n*_*.JPEG", (900,)),),
        instructions=_FROM.format(name="imagenet_sample") + " (imagenet-sample-900_s256.tar)",
    ),
    DatasetEntry(
        name="tiny_imagenet",
        title="Tiny-ImageNet-200 with boxes, 64x64: test = official validation set",
        licence="ImageNet terms: non-commercial research",
        homepage="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        splits={"test": 10_000},
        loader=stored_loader("tiny_imagenet", readers.tiny_imagenet, 64),
        editions=(
            Edition(
                "validation part",
                (
                    Archive(
                        "tiny-imagenet-200-val.tar.xz",
                        sha256="d015c59210de94251f386d175febc88ab64b589cbab8e4985b9acd41bb833559",
                    ),
                ),
            ),
            Edition(
                "official",
                (Archive("tiny-imagenet-200.zip", url="http://cs231n.stanford.edu/tiny-imagenet-200.zip"),),
            ),
        ),
        contents=(
            *(Contents(f"tiny-imagenet-200/{f}", (1,)) for f in ("wnids.txt", "words.txt", "val/val_annotations.txt")),
            Contents("tiny-imagenet-200/val/images/*.JPEG", (10_000,)),
        ),
        instructions="repro data prepare tiny_imagenet (downloads 240 MB), or --from a folder with the archive.",
    ),
)

_LOCALISATION = (
    DatasetEntry(
        name="cub",
        title="CUB-200-2011 birds with boxes (all 200 classes or 001-050 at short side 256), val = CUBV2",
        licence=_RESEARCH,
        homepage="https://data.caltech.edu/records/65de6-vp158",
        splits={"train": 5_994, "val": 1_000, "test": 5_794},
        loader=stored_loader("cub", readers.cub, 224, "squash", cached=True),
        editions=(
            Edition("official", (Archive("CUB_200_2011.tgz", md5="97eceeb196236b17998738112f37df78"),)),
            Edition(
                "classes 001-050",
                (
                    Archive(
                        "CUB_classes001-050_s256.tar",
                        sha256="f8e66f31fb856c59040f11dec79af7ab4844c0670c305a200f6ed476dcb4fe12",
                    ),
                ),
            ),
        ),
        contents=(
            *(Contents(f"CUB_200_2011/{f}.txt", (1,)) for f in ("images", "classes", "train_test_split")),
            Contents("CUB_200_2011/images/*/*.jpg", (2_889, 11_788)),
        ),
        instructions="Get CUB_200_2011.tgz from the homepage, then " + _FROM.format(name="cub"),
        needs=("wsol_metadata",),
    ),
    DatasetEntry(
        name="ilsvrc",
        title="ILSVRC 2012 localisation: train without boxes, test = official validation set, val = ImageNetV2",
        licence=_RESEARCH,
        homepage="https://image-net.org/",
        splits={"train": 1_281_167, "val": 10_000, "test": 50_000},
        loader=stored_loader("ilsvrc", readers.ilsvrc, 224, "squash", cached=True),
        editions=(
            Edition(
                "official",
                (Archive("ILSVRC2012_img_val.tar", md5="29b22e2961454d5413ddabcf34fc5622", into="val"),),
            ),
        ),
        contents=(Contents("val/ILSVRC2012_val_*.JPEG", (50_000,)),),
        instructions="Sign in at image-net.org, get ILSVRC2012_img_val.tar, then "
        + _FROM.format(name="ilsvrc")
        + " Training images go to ilsvrc/train/<synset>/, ImageNetV2's to ilsvrc/val2/<class>/.",
        needs=("wsol_metadata",),
    ),
    DatasetEntry(
        name="openimages30k",
        title="OpenImages30k of the WSOL benchmark: 100 classes, masks",
        licence="images CC BY 2.0, masks CC BY 4.0",
        homepage="https://github.com/clovaai/wsolevaluation",
        splits={"train": 29_819, "val": 2_500, "test": 5_000},
        loader=stored_loader("openimages30k", readers.openimages30k, 224, "squash", cached=True),
        editions=(Edition("official", (Archive("OpenImages_images.zip"), Archive("OpenImages_annotations.zip"))),),
        contents=(
            *(Contents(f"{split}/*/*.jpg") for split in ("train", "val", "test")),
            *(Contents(f"{split}/*/*.png") for split in ("val", "test")),
        ),
        instructions="Follow the benchmark's page to its images and masks, lay them out as <split>/<class>/*, in the "
        "folder openimages30k of the data root, or " + _FROM.format(name="openimages30k"),
        needs=("wsol_metadata",),
    ),
)

_FILES = (
    DatasetEntry(
        name="wsol_metadata",
        title="Image lists, sizes and boxes of the WSOL benchmark (CUB, ILSVRC, OpenImages)",
        licence="MIT; boxes CC BY 2.0 / 4.0; lists under the data sets' own terms",
        homepage="https://github.com/clovaai/wsolevaluation",
        splits={},
        loader=None,
        editions=(
            Edition(
                "metadata",
                (
                    Archive(
                        "wsolevaluation-metadata.tar.xz",
                        sha256="aeea8fb44c92e175afd4f51b6e77b7440900cb422956c299cb5e81a4e3cde76b",
                    ),
                ),
            ),
        ),
        contents=(
            Contents("metadata/CUB/*/*.txt", (12,)),
            Contents("metadata/ILSVRC/*/*.txt"),
            Contents("metadata/OpenImages/*/*.txt"),
        ),
        instructions=_FROM.format(name="wsol_metadata") + ", or copy the benchmark's folder metadata/ into the folder "
        "wsol_metadata of the data root.",
    ),
    DatasetEntry(
        name="weights",
        title="Trained networks: ImageNet SqueezeNet 1.0, CIFAR-10 ResNet-20",
        licence="BSD; BSD-2; labels Apache-2.0",
        homepage="https://github.com/akamaster/pytorch_resnet_cifar10",
        splits={},
        loader=None,
        editions=(
            Edition(
                "three files",
                (
                    Archive(
                        "squeezenet1_0_imagenet.safetensors",
                        sha256="c33bd1d366242dc15989ac6e14f7201356aafcb97b53003e895a7bc449ed97d8",
                    ),
                    Archive(
                        "resnet20-12fca82f.th",
                        sha256="12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8",
                    ),
                    Archive(
                        "imagenet_labels.txt",
                        sha256="b8aaeb5630c62626a7d124a05c0e14230a7ffdd2136a31d0190a4fb71c1d82f1",
                    ),
                ),
            ),
        ),
        contents=(
            Contents("squeezenet1_0_imagenet.safetensors", (1,)),
            Contents("resnet20-12fca82f.th", (1,)),
            Contents("imagenet_labels.txt", (1,)),
        ),
        instructions=_FROM.format(name="weights"),
    ),
)

ENTRIES: tuple[DatasetEntry, ...] = (*_PHOTOGRAPHS, *_IMAGENET, *_LOCALISATION, *_FILES)
