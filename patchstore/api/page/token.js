// Asks the person for an access token.

const dialog = document.getElementById("token");
const input = document.getElementById("token-input");

document.getElementById("token-cancel").addEventListener("click", () => dialog.close(""));

/**
 * @param {boolean} refused the last one was
 * @returns {Promise<string|null>} null: cancelled
 */
export function askToken(refused) {
  document.getElementById("token-refused").hidden = !refused;
  input.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    const answer = () => resolve(dialog.returnValue === "give" ? input.value.trim() : null);
    dialog.addEventListener("close", answer, { once: true });
  });
}
