"""The sources that `prepare` reads, in the order of its help. A source is a file here, a line below, a page of docs."""

from groundray.data.sources.caption_table import CaptionTable
from groundray.data.sources.coco import Coco
from groundray.data.sources.flickr import Flickr
from groundray.data.sources.image_folder import ImageFolder
from groundray.data.sources.images import Images
from groundray.data.sources.karpathy import Karpathy
from groundray.data.sources.protocol import Source
from groundray.data.sources.region_descriptions import RegionDescriptions
from groundray.data.sources.scenes import Scenes
from groundray.data.sources.text import Text
from groundray.data.sources.visual_genome import VisualGenome
from groundray.data.sources.webdataset import WebDataset

SOURCES: tuple[type[Source], ...] = (
    Coco,
    Karpathy,
    WebDataset,
    CaptionTable,
    Flickr,
    VisualGenome,
    RegionDescriptions,
    ImageFolder,
    Images,
    Text,
    Scenes,
)
