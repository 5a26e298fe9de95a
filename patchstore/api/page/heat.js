// Similarity over an image as colours.

const SIDE = 256; // cells of the longer side
const NOISE = 1e-9; // of the sums; a flat image is all near
// viridis at nine places: evenly perceived, in grey and to colour-blind eyes too.
const VIRIDIS = [
  [68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141],
  [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37],
];

/**
 * Draws how near every place of an image is: yellow the nearest, violet the farthest.
 * A place's value is the mean distance of the patches that overlap there.
 * @param {HTMLCanvasElement} canvas
 * @param {number} width of the image, pixels
 * @param {number} height
 * @param {{box: number[], distance: number}[]} patches
 * @returns {{near: number, far: number}} the distances at the ends of the colours
 */
export function drawHeat(canvas, width, height, patches) {
  const ratio = Math.min(1, SIDE / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * ratio));
  canvas.height = Math.max(1, Math.round(height * ratio));
  const means = meanDistances(patches, canvas.width / width, canvas.height / height, canvas);
  const known = means.filter((mean) => !Number.isNaN(mean));
  const near = known.reduce((a, b) => Math.min(a, b), Infinity);
  const far = known.reduce((a, b) => Math.max(a, b), -Infinity);
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  means.forEach((mean, i) => {
    if (Number.isNaN(mean)) return;
    picture.data.set([...colour(far - near > NOISE ? (far - mean) / (far - near) : 1), 255], 4 * i);
  });
  context.putImageData(picture, 0, 0);
  return { near, far };
}

/** @param {HTMLCanvasElement} canvas one row: the colours from farthest to nearest */
export function drawScale(canvas) {
  const context = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    context.fillStyle = `rgb(${colour(x / (canvas.width - 1))})`;
    context.fillRect(x, 0, 1, canvas.height);
  }
}

/** Sums by differences: a patch costs its four corners, whatever its size. */
function meanDistances(patches, scaleX, scaleY, { width, height }) {
  const columns = width + 1;
  const sums = new Float64Array(columns * (height + 1));
  const counts = new Float64Array(columns * (height + 1));
  for (const { box: [x, y, w, h], distance } of patches) {
    const [left, right] = [x * scaleX, (x + w) * scaleX].map((value) => Math.min(width, Math.round(value)));
    const [top, bottom] = [y * scaleY, (y + h) * scaleY].map((value) => Math.min(height, Math.round(value)));
    for (const [column, row, sign] of [[left, top, 1], [right, top, -1], [left, bottom, -1], [right, bottom, 1]]) {
      sums[row * columns + column] += sign * distance;
      counts[row * columns + column] += sign;
    }
  }
  const means = new Float64Array(width * height);
  for (let row = 0; row < height; row++) {
    let [sum, count] = [0, 0];
    for (let column = 0; column < width; column++) {
      const i = row * columns + column;
      sum += sums[i];
      count += counts[i];
      // The row above already holds its running sums.
      sums[i] = sum + (row ? sums[i - columns] : 0);
      counts[i] = count + (row ? counts[i - columns] : 0);
      means[row * width + column] = counts[i] ? sums[i] / counts[i] : NaN;
    }
  }
  return means;
}

function colour(value) {
  const place = value * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((from, i) => Math.round(from + (VIRIDIS[low + 1][i] - from) * (place - low)));
}
