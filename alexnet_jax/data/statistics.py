"""Mean image, mean, standard deviation and principal colours of the training images, summed up as they are prepared."""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of the training images' grey levels, 0 to 255.

    Attributes:
      mean_image: float32, [size, size, 3].
      mean, std: of R, G and B.
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
        """Returns zeros, for images that are not prepared yet."""
        zeros = (0.0, 0.0, 0.0)
        return cls(np.zeros((image_size, image_size, 3), np.float32), zeros, zeros, zeros, (zeros,) * 3)


class PixelSums:
    """Sums over images, from which their statistics follow.

    Attributes:
      pixels: sums of the pixels, [size, size, 3]; of one chunk's images, they are exact in float32.
      products: sums of the products of the channels less 128, over all pixels, [3, 3].
    """

    def __init__(self, image_size: int):
        self.pixels: np.ndarray = np.zeros((image_size, image_size, 3), np.float32)
        self.products: np.ndarray = np.zeros((3, 3))
        # Allocated once, for threads that allocate wait for each other. Zeros fill the last rows.
        self._rows = np.zeros((-(-self.pixels.size // (512 * 12)), 512, 12), np.float32)

    def add(self, image: np.ndarray) -> None:
        """Adds an image, uint8, [size, size, 3].

        Four pixels a row make the matrix products wide enough; over 512 rows float32 is exact, for 512 * 128^2 < 2^24.
        """
        cv2.accumulate(image, self.pixels)
        np.subtract(image.ravel(), 128, out=self._rows.reshape(-1)[: image.size], dtype=np.float32)
        products = (self._rows.transpose(0, 2, 1) @ self._rows).sum(axis=0, dtype=np.float64)
        self.products += np.einsum("ijik->jk", products.reshape(4, 3, 4, 3))

    def extend(self, other: "PixelSums") -> None:
        """Adds the sums over other images."""
        self.pixels = self.pixels.astype(np.float64) + other.pixels
        self.products += other.products

    def statistics(self, images: int) -> Statistics:
        """Returns the statistics of the images, of which there are so many."""
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
