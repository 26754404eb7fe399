// The fields that limit which pictures are found, as conditions of the service (groundray/image_search/filters.py).

import { ask } from "./api.js";
import { make } from "./elements.js";

const CONDITIONS = {
  width: (value) => `width>=${value}`,
  height: (value) => `height>=${value}`,
  orientation: (value) => `orientation=${value}`,
  id: (value) => `id=${/[*?]/.test(value) ? value : `${value}*`}`,
  label: (value) => `label=${value}`,
};

/**
 * Open the fields of a form; `changed()` is called after each change.
 *
 * @returns {{noted: () => Object<string, string>, conditions: () => string[], show: (values: URLSearchParams) => void}}
 *   `noted` gives the fields that are set, as the address has them
 */
export function openFilters(form, changed) {
  const fields = Object.keys(CONDITIONS).map((name) => form.elements[name]);
  const { label } = form.elements;
  const offer = (names) => {
    label.append(...names.map((name) => make("option", { value: name }, name)));
    label.closest("label").hidden = label.options.length < 2;
  };
  ask("labels")
    .then(({ labels }) => offer(labels.filter((name) => ![...label.options].some(({ value }) => value === name))))
    .catch(() => {}); // the other fields work without

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", ({ target }) => target.validity.valid && changed());

  const noted = () =>
    Object.fromEntries(
      fields
        .filter(({ value, validity }) => value.trim() && validity.valid)
        .map(({ name, value }) => [name, value.trim()]),
    );
  return {
    noted,
    conditions: () => Object.entries(noted()).map(([name, value]) => CONDITIONS[name](value)),
    show(values) {
      const named = values.get("label");
      // its options may come later; one that is none is refused by the service
      if (named && ![...label.options].some(({ value }) => value === named)) offer([named]);
      for (const field of fields) field.value = values.get(field.name) ?? "";
    },
  };
}
