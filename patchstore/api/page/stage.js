// A picture that things are drawn on and pointed at, in pixels of its upright original.

/**
 * @param {HTMLElement} root
 */
export function makeStage(root) {
  const img = document.createElement("img");
  img.draggable = false;
  root.append(img);
  const stage = {
    root,
    img,
    width: 1,
    height: 1,

    /** Sets the size in pixels of the original; everything placed is placed anew by its owner. */
    resize(width, height) {
      stage.width = width;
      stage.height = height;
      root.style.setProperty("--ratio", width / height);
    },

    /** Where a pointer is, clamped into the picture. */
    point(event) {
      const { left, top, width, height } = img.getBoundingClientRect();
      return [
        clamp(((event.clientX - left) / width) * stage.width, 0, stage.width),
        clamp(((event.clientY - top) / height) * stage.height, 0, stage.height),
      ];
    },

    /** A mark that `place` moves. */
    mark(name) {
      const element = document.createElement("div");
      element.className = name;
      element.hidden = true;
      root.append(element);
      return element;
    },

    /**
     * @param {HTMLElement} element
     * @param {number[]|null} box x, y, width, height; null hides it
     */
    place(element, box) {
      element.hidden = box === null;
      if (box === null) return;
      const [x, y, width, height] = box;
      element.style.left = `${(100 * x) / stage.width}%`;
      element.style.top = `${(100 * y) / stage.height}%`;
      element.style.width = `${(100 * width) / stage.width}%`;
      element.style.height = `${(100 * height) / stage.height}%`;
    },
  };
  return stage;
}

export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), Math.max(low, high));
}
