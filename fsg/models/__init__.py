"""The networks of the field by name: one file a family."""

from fsg.imported import Imported
from fsg.models.resnet import ResNet
from fsg.models.vgg import VGGSmall
from fsg.models.vision import Torchvision

ModelConfig = ResNet.Config | VGGSmall.Config | Torchvision.Config | Imported

__all__ = ["ModelConfig", "ResNet", "Torchvision", "VGGSmall"]
