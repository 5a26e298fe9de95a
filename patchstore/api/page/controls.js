// The controls beside the question: what they hold, and what is wrong with it.

/**
 * @param {HTMLFormElement} form
 * @param {() => void} changed somebody changed something that makes sense
 */
export function makeControls(form, changed) {
  const fields = form.elements;
  const checked = ["k", "filter", "max"];

  /** Says beside each field what is wrong with it. */
  function validate() {
    fields.filter.setCustomValidity(filterFault(fields.filter.value.trim()));
    for (const name of checked) {
      const field = fields[name];
      field.setAttribute("aria-invalid", String(!field.validity.valid));
      document.getElementById(`${name}-error`).textContent = field.validationMessage;
    }
    return form.checkValidity();
  }

  /** What has no meaning now cannot be changed. */
  function enable() {
    const arranged = fields.consistent.checked && !fields.consistent.disabled;
    document.getElementById("rank").disabled = arranged;
    fields.merge.disabled = arranged || fields.by.value === "image";
  }

  form.addEventListener("input", () => {
    enable();
    if (validate()) changed();
  });
  form.addEventListener("submit", (event) => event.preventDefault());

  return {
    /** @param {{name: string, aliases: string[]}[]} specs */
    fill(specs) {
      const options = specs.flatMap(({ name, aliases }) => [
        new Option(name, name),
        ...aliases.map((alias) => new Option(`${alias} (${name})`, alias)),
      ]);
      fields.spec.replaceChildren(...options);
      if (options.some(({ value }) => value === "default")) fields.spec.value = "default";
    },

    /**
     * @param {import("./address.js").Options} options
     * @param {string} kind of the question
     */
    show(options, kind) {
      fields.consistent.disabled = kind !== "upload";
      for (const [name, value] of Object.entries(options)) {
        if (name === "spec") {
          if (!value) continue;
          const known = [...fields.spec.options].some((option) => option.value === value);
          if (!known) fields.spec.add(new Option(value, value)); // what the service refuses
          fields.spec.value = value;
        } else if (typeof value === "boolean") fields[name].checked = value;
        else fields[name].value = value;
      }
      enable();
      const narrowed = options.filter || options.prefix || options.max || options.exact;
      if (narrowed) document.getElementById("more").open = true;
      validate();
    },

    /** @returns {import("./address.js").Options|null} null: something is wrong and says so */
    read() {
      if (!validate()) return null;
      return {
        spec: fields.spec.value,
        by: fields.by.value,
        other: fields.other.checked,
        merge: fields.merge.checked,
        consistent: fields.consistent.checked && !fields.consistent.disabled,
        exact: fields.exact.checked,
        k: fields.k.value,
        filter: fields.filter.value.trim(),
        prefix: fields.prefix.value,
        max: fields.max.value,
      };
    },
  };
}

function filterFault(text) {
  if (!text) return "";
  try {
    const value = JSON.parse(text);
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return "";
  } catch (error) {
    return `This is not JSON yet: ${error.message}`;
  }
  return 'A JSON object is wanted, such as {"shelf": 3}.';
}
