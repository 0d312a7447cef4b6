// What an ONNX file says of itself. onnxruntime-web does not hand the metadata on, so they are read here: a few fields
// at the top of a protocol buffer, whose graph is skipped.

const METADATA_PROPS = 14; // of ModelProto
const VARINT = 0;
const FIXED64 = 1;
const BYTES = 2;
const FIXED32 = 5;

/**
 * The metadata of an ONNX file.
 * @param {Uint8Array} bytes the file
 * @returns {Map<string, string>}
 */
export function readMetadata(bytes) {
  const found = new Map();
  for (const [field, value] of fields(bytes)) {
    if (field !== METADATA_PROPS) continue;
    const entry = new Map(fields(value));
    found.set(text(entry.get(1)), text(entry.get(2)));
  }
  return found;
}

const decoder = new TextDecoder();
const text = (bytes) => (bytes ? decoder.decode(bytes) : "");

/** Every field of a message whose value is a run of bytes: [number, bytes]. Others are passed over. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; at < bytes.length; scale *= 128) {
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
    throw damaged();
  };
  while (at < bytes.length) {
    const tag = varint();
    const [field, kind] = [Math.floor(tag / 8), tag % 8];
    if (kind === VARINT) varint();
    else if (kind === FIXED64) at += 8;
    else if (kind === FIXED32) at += 4;
    else if (kind === BYTES) {
      const length = varint();
      if (at + length > bytes.length) throw damaged();
      yield [field, bytes.subarray(at, at + length)];
      at += length;
    } else throw damaged();
  }
}

const damaged = () => new Error("this is no ONNX file, or a damaged one");
