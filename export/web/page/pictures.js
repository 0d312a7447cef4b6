// Where a picture comes from: a file, a drop, the clipboard, the camera. All become pixels here, and go nowhere.

const MOST = 16e6; // pixels: what every browser can hold in a canvas

/** The pixels of an image file or blob, upright and on white, with a canvas to draw them from. */
export async function fromBlob(blob) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => null);
  if (!bitmap) throw new Error(`${blob.name ?? "this"} is not a picture that this browser reads`);
  const picture = drawn(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return picture;
}

function drawn(source, width, height) {
  const shrink = Math.min(1, Math.sqrt(MOST / (width * height)));
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width, height].map((side) => Math.max(1, Math.round(side * shrink)));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return { canvas, image: context.getImageData(0, 0, canvas.width, canvas.height) };
}

/** Call back with each file that is dropped anywhere or pasted. */
export function whenGiven(overlay, given) {
  let depth = 0;
  const show = (change) => {
    depth = Math.max(0, depth + change);
    overlay.hidden = depth === 0;
  };
  const carries = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragenter", (event) => carries(event) && show(1));
  addEventListener("dragleave", (event) => carries(event) && show(-1));
  addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    show(-depth);
    if (!carries(event)) return;
    event.preventDefault();
    if (event.dataTransfer.files.length) given(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (file) given(file);
  });
}

/** The camera: frames while it is on. */
export class Camera {
  #video = Object.assign(document.createElement("video"), { muted: true, playsInline: true });

  get on() {
    return this.#video.srcObject !== null;
  }

  async start() {
    if (!navigator.mediaDevices) throw new Error("a browser gives the camera to https:// and localhost alone");
    this.#video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await this.#video.play();
  }

  frame() {
    return drawn(this.#video, this.#video.videoWidth, this.#video.videoHeight);
  }

  stop() {
    this.#video.srcObject?.getTracks().forEach((track) => track.stop());
    this.#video.srcObject = null;
  }
}
