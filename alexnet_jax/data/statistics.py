"""Statistics of the training images, from sums over their pixels: means, standard deviations, principal components."""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Statistics of the training images, in grey levels from 0 to 255.

    Attributes:
      mean_image: mean of each pixel, float32, [size, size, 3].
      mean, std: mean and standard deviation of R, G and B.
      pca_std: standard deviations along the principal components of the colours, the largest first.
      pca_vectors: the components as columns, rows R, G, B.
    """

    mean_image: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pca_std: tuple[float, ...]
    pca_vectors: tuple[tuple[float, ...], ...]

    @classmethod
    def unknown(cls, image_size: int) -> "Statistics":
        """Returns zeros, in place of statistics that are not known yet."""
        zeros = (0.0, 0.0, 0.0)
        return cls(np.zeros((image_size, image_size, 3), np.float32), zeros, zeros, zeros, (zeros,) * 3)


class PixelSums:
    """Sums over images, from which their statistics are computed.

    Attributes:
      pixels: sum of each pixel, [size, size, 3]; over the images of one chunk it is exact in float32.
      products: sums over all pixels of the products of two channels, each less 128, [3, 3].
    """

    def __init__(self, image_size: int):
        self.pixels: np.ndarray = np.zeros((image_size, image_size, 3), np.float32)
        self.products: np.ndarray = np.zeros((3, 3))
        # Allocated once, because threads that allocate wait for each other. The last rows are padded with zeros.
        self._rows = np.zeros((-(-self.pixels.size // (512 * 12)), 512, 12), np.float32)

    def add(self, image: np.ndarray) -> None:
        """Adds an image, uint8, [size, size, 3].

        Rows of four pixels make the matrix products large enough to be fast; over 512 rows they are exact in float32,
        since 512 * 128^2 < 2^24.
        """
        cv2.accumulate(image, self.pixels)
        np.subtract(image.ravel(), 128, out=self._rows.reshape(-1)[: image.size], dtype=np.float32)
        products = (self._rows.transpose(0, 2, 1) @ self._rows).sum(axis=0, dtype=np.float64)
        self.products += np.einsum("ijik->jk", products.reshape(4, 3, 4, 3))

    def extend(self, other: "PixelSums") -> None:
        """Adds the sums over other images of the same size."""
        self.pixels = self.pixels.astype(np.float64) + other.pixels
        self.products += other.products

    def statistics(self, images: int) -> Statistics:
        """Returns the statistics of the images that were added; `images` is their number."""
        mean_image = self.pixels.astype(np.float64) / images
        mean = mean_image.mean(axis=(0, 1))
        covariance = self.products / (images * mean_image.shape[0] ** 2) - np.outer(mean - 128, mean - 128)
        variances, vectors = np.linalg.eigh(covariance)
        largest = np.abs(vectors).argmax(axis=0)
        vectors *= np.sign(vectors[largest, range(3)])  # the sign of a component is arbitrary
        return Statistics(
            mean_image=mean_image.astype(np.float32),
            mean=tuple(mean.tolist()),
            std=tuple(np.sqrt(covariance.diagonal().clip(0)).tolist()),
            pca_std=tuple(np.sqrt(variances[::-1].clip(0)).tolist()),
            pca_vectors=tuple(map(tuple, vectors[:, ::-1].tolist())),
        )
