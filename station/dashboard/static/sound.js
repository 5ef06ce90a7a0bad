// Two tones for a new alert; off until somebody turns it on, which is also the gesture that browsers ask for.
import { remember, remembered } from "./preferences.js";

let context = null;
let wanted = remembered("sound", "0") === "1";

export const soundOn = () => wanted;

export function toggleSound() {
  wanted = !wanted;
  remember("sound", wanted ? "1" : "0");
  if (wanted) chime();
  return wanted;
}

export async function chime() {
  if (!wanted) return;
  context ??= new AudioContext();
  await context.resume();
  for (const [frequency, start] of [[784, 0], [523, 0.22]]) {
    const tone = context.createOscillator();
    const volume = context.createGain();
    const at = context.currentTime + start;
    tone.frequency.value = frequency;
    volume.gain.setValueAtTime(0, at);
    volume.gain.linearRampToValueAtTime(0.25, at + 0.02);
    volume.gain.exponentialRampToValueAtTime(0.001, at + 0.4);
    tone.connect(volume).connect(context.destination);
    tone.start(at);
    tone.stop(at + 0.45);
  }
}
