"use strict";
// Pictures of what the compressor saw of a layer, on canvases: its regions over the mean calibration image, and how the
// channels of a region activate together. They take plain data and return elements.
const Pictures = (() => {
  // Okabe and Ito's colours, told apart without red and green.
  const COLOURS = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [240, 228, 66], [120, 120, 120]];
  const WIDTH = 120;
  const SIDE = 112;

  const bytesOf = (picture) => Uint8Array.from(atob(picture.bytes), (character) => character.charCodeAt(0));

  function canvasOf(width, height, label) {
    const canvas = document.createElement("canvas");
    const density = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", label);
    const brush = canvas.getContext("2d");
    brush.scale(density, density);
    return [canvas, brush];
  }

  // A canvas of one pixel per value; `paint` gives red, green and blue of the value at an index.
  function pixels(width, height, paint) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const brush = canvas.getContext("2d");
    const image = brush.createImageData(width, height);
    for (let index = 0; index < width * height; index++) image.data.set([...paint(index), 255], 4 * index);
    brush.putImageData(image, 0, 0);
    return canvas;
  }

  function meanImage(mean) {
    const bytes = bytesOf(mean);
    const [height, width, channels] = mean.shape;
    return pixels(width, height, (index) => (channels ? bytes.slice(3 * index, 3 * index + 3) : [bytes[index], bytes[index], bytes[index]]));
  }

  function regionMap(layer, mean) {
    const [rows, columns] = layer.size;
    const [high, wide] = mean ? mean.shape : layer.size;
    const height = Math.max(24, Math.min(2 * WIDTH, (WIDTH * high) / wide));
    const regions = layer.clusters.length;
    const [canvas, brush] = canvasOf(WIDTH, height, `${layer.name}: ${regions} ${regions === 1 ? "region" : "regions"} of its ${rows} x ${columns} output map${mean ? ", over the mean calibration image" : ""}`);
    brush.fillStyle = "#808080";
    brush.fillRect(0, 0, WIDTH, height);
    if (mean) brush.drawImage(meanImage(mean), 0, 0, WIDTH, height);
    const largest = new Map();
    for (const [top, bottom, left, right, region] of layer.pieces) {
      const box = [(left / columns) * WIDTH, (top / rows) * height, ((right - left) / columns) * WIDTH, ((bottom - top) / rows) * height];
      const colour = COLOURS[region % COLOURS.length].join();
      brush.fillStyle = `rgba(${colour},0.2)`;
      brush.fillRect(...box);
      brush.strokeStyle = `rgb(${colour})`;
      brush.lineWidth = 1.5;
      brush.strokeRect(box[0] + 0.75, box[1] + 0.75, Math.max(box[2] - 1.5, 0.5), Math.max(box[3] - 1.5, 0.5));
      if (box[2] * box[3] > (largest.get(region)?.area ?? 0)) largest.set(region, { area: box[2] * box[3], x: box[0] + box[2] / 2, y: box[1] + box[3] / 2 });
    }
    brush.font = "600 12px system-ui, sans-serif";
    brush.textAlign = "center";
    brush.textBaseline = "middle";
    brush.lineWidth = 3;
    for (const [region, { x, y }] of largest) {
      brush.strokeStyle = "#000";
      brush.strokeText(String(region + 1), x, y);
      brush.fillStyle = "#fff";
      brush.fillText(String(region + 1), x, y);
    }
    return canvas;
  }

  // Orange for channels that activate together, white for those that have nothing to do with each other, blue for opposites.
  function tone(value) {
    const share = Math.abs(value) / 127;
    const end = value >= 0 ? [179, 88, 6] : [33, 102, 172];
    return end.map((full) => Math.round(255 + (full - 255) * share));
  }

  function coactivation(layer, region) {
    const picture = layer.coactivation[region];
    const sizes = layer.clusters[region];
    const bytes = new Int8Array(bytesOf(picture).buffer);
    const side = picture.shape[0];
    const [canvas, brush] = canvasOf(SIDE, SIDE, `${layer.name}, region ${region + 1}: correlations between channels in ${sizes.length} clusters of ${sizes.join(", ")} channels`);
    brush.imageSmoothingEnabled = false;
    brush.drawImage(pixels(side, side, (index) => tone(bytes[index])), 0, 0, SIDE, SIDE);
    const channels = sizes.reduce((total, size) => total + size, 0);
    brush.strokeStyle = "#000";
    let before = 0;
    for (const size of sizes) {
      brush.strokeRect((before / channels) * SIDE + 0.5, (before / channels) * SIDE + 0.5, (size / channels) * SIDE - 1, (size / channels) * SIDE - 1);
      before += size;
    }
    return canvas;
  }

  return { regionMap, coactivation };
})();
