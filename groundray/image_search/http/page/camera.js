// A still from the camera, as a file. A phone's own camera needs none of this: an input with `capture` opens it.

import { Failure } from "./api.js";

const IDEAL = { width: { ideal: 1280 }, height: { ideal: 960 }, facingMode: { ideal: "environment" } };
const QUALITY = 0.92; // of the JPEG

// by the names of the browser's errors
const REASONS = {
  NotAllowedError: "The camera was refused. Allow it for this address in the browser, then try again.",
  NotFoundError: "This device has no camera: choose a picture instead.",
  OverconstrainedError: "This device has no camera that fits: choose a picture instead.",
  NotReadableError: "The camera cannot be used. Close what else uses it, then try again.",
};

/**
 * Show the camera in a video element.
 *
 * @returns {Promise<{still: () => Promise<File>, stop: () => void}>}
 * @throws {Failure} there is no camera, or it is refused or in use
 */
export async function openCamera(video) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Failure(
      "The browser gives the camera only to pages at https or localhost: choose a picture from this device instead.",
    );
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: IDEAL, audio: false });
  } catch (error) {
    throw new Failure(REASONS[error.name] ?? `The camera cannot be used: ${error.message || error.name}.`);
  }
  const stop = () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  video.srcObject = stream;
  try {
    await video.play();
  } catch (error) {
    stop();
    throw new Failure(`The camera cannot be shown: ${error.message}.`);
  }
  return { still: () => still(video), stop };
}

async function still(video) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
  if (!blob) throw new Failure("The camera gave no picture: try again.");
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", ".");
  return new File([blob], `camera ${time}.jpg`, { type: "image/jpeg" });
}
