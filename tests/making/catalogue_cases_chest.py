"""Folders in the published layouts of chest X-rays and 2D chest CT: what must be found, by hand."""

from __future__ import annotations

from catalogue_trees import Case, box, medmnist, series, voc

_CHEXPERT_COLUMNS = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,"
    "Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices\n"
)
_MIMIC_COLUMNS = "subject_id,study_id," + _CHEXPERT_COLUMNS.split("AP/PA,")[1]

CASES: dict[str, Case] = {
    "deeplesion": Case(
        """
        Images_png/000001_01_01/108.png
        Images_png/000001_01_01/109.png
        Images_png/000004_01_02/015.png
        Images_png/000004_02_01/020.png
        """,
        {
            "Images_png/000001_01_01/108.png": {"split": "train", "group": 1},
            "Images_png/000001_01_01/109.png": {
                "split": "train",
                "group": 1,
                "boxes": [box("-1", 226.2, 90.0, 241.6, 111.5), box("5", 10, 20, 30, 40)],
            },
            "Images_png/000004_01_02/015.png": {"split": "test", "group": 4, "boxes": [box("3", 1, 2, 3, 4)]},
            "Images_png/000004_02_01/020.png": {"split": "test", "group": 4},
        },
        {
            "DL_info.csv": "File_name,Patient_index,Bounding_boxes,Coarse_lesion_type,Train_Val_Test\n"
            '000001_01_01_109.png,1,"226.2, 90.0, 241.6, 111.5",-1,1\n'
            '000001_01_01_109.png,1,"10, 20, 30, 40",5,1\n'
            '000004_01_02_015.png,4,"1, 2, 3, 4",3,3\n'
        },
    ),
    "chexpert": Case(
        """
        CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg
        CheXpert-v1.0-small/train/patient00001/study2/view1_lateral.jpg
        CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg
        """,
        {
            "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg": {
                "split": "train",
                "group": 1,
                "labels": ["Edema", "Support Devices"],
            },
            "CheXpert-v1.0-small/train/patient00001/study2/view1_lateral.jpg": {
                "split": "train",
                "group": 1,
                "labels": [],
            },
            "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg": {
                "split": "val",
                "group": 2,
                "labels": ["No Finding"],
            },
        },
        {
            "CheXpert-v1.0-small/train.csv": _CHEXPERT_COLUMNS
            + "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,F,60,Frontal,AP,,,,"
            "-1.0,,1.0,,,,0.0,,,,1.0\n"
            + "CheXpert-v1.0-small/train/patient00001/study2/view1_lateral.jpg,F,60,Lateral,,,,,-1.0,,,,,,0.0,,,,\n",
            "CheXpert-v1.0-small/valid.csv": _CHEXPERT_COLUMNS
            + "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,M,73,Frontal,AP,1.0,,,,,,,,,,,,,\n",
        },
    ),
    "mimic-cxr": Case(
        """
        files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg
        files/p10/p10000032/s53189527/2a2277a9-b0ded155.jpg
        files/p11/p11000011/s51029426/aaaa-bbbb.dcm
        """,
        {
            "files/p10/p10000032/s50414267/02aa804e-bde0afdd.jpg": {
                "split": "train",
                "group": 1,
                "labels": ["Pneumonia", "Fracture"],
            },
            "files/p10/p10000032/s53189527/2a2277a9-b0ded155.jpg": {"split": "train", "group": 1, "labels": []},
            "files/p11/p11000011/s51029426/aaaa-bbbb.dcm": {"split": "val", "group": 2, "labels": ["No Finding"]},
        },
        {
            "mimic-cxr-2.0.0-chexpert.csv": _MIMIC_COLUMNS
            + "10000032,50414267,,,,,,,,1.0,,,,,1.0,\n10000032,53189527,,,,,,,,-1.0,,,,,,\n"
            "11000011,51029426,1.0,,,,,,,,,,,,,\n",
            "mimic-cxr-2.0.0-split.csv": "dicom_id,study_id,subject_id,split\n"
            "02aa804e-bde0afdd,50414267,10000032,train\n"
            "2a2277a9-b0ded155,53189527,10000032,train\naaaa-bbbb,51029426,11000011,validate\n",
        },
    ),
    "nih-chestxray14": Case(
        """
        images_001/images/00000001_000.png
        images_001/images/00000001_001.png
        images_002/images/00000002_000.png
        """,
        {
            "images_001/images/00000001_000.png": {"split": "train", "group": 1, "labels": ["Cardiomegaly"]},
            "images_001/images/00000001_001.png": {
                "split": "train",
                "group": 1,
                "labels": ["Cardiomegaly", "Infiltration"],
                "boxes": [box("Infiltration", 10.5, 20, 110.5, 70)],
            },
            "images_002/images/00000002_000.png": {"split": "test", "group": 2, "labels": []},
        },
        {
            "Data_Entry_2017.csv": "Image Index,Finding Labels,Follow-up #,Patient ID\n"
            "00000001_000.png,Cardiomegaly,0,1\n"
            "00000001_001.png,Cardiomegaly|Infiltration,1,1\n00000002_000.png,No Finding,0,2\n",
            "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
            "00000001_001.png,Infiltrate,10.5,20,100,50,,,\n",
            "train_val_list.txt": "00000001_000.png\n00000001_001.png\n",
            "test_list.txt": "00000002_000.png\n",
        },
    ),
    "covid19-radiography": Case(
        """
        COVID-19_Radiography_Dataset/COVID/images/COVID-1.png
        COVID-19_Radiography_Dataset/COVID/masks/COVID-1.png
        COVID-19_Radiography_Dataset/Viral Pneumonia/images/Viral Pneumonia-7.png
        COVID-19_Radiography_Dataset/Viral Pneumonia/masks/Viral Pneumonia-7.png
        COVID-19_Radiography_Dataset/Normal/images/Normal-1.png
        COVID-19_Radiography_Dataset/Lung_Opacity/images/Lung_Opacity-1.png
        """,
        {
            "COVID-19_Radiography_Dataset/COVID/images/COVID-1.png": {
                "label": "COVID",
                "mask": "COVID-19_Radiography_Dataset/COVID/masks/COVID-1.png",
            },
            "COVID-19_Radiography_Dataset/Viral Pneumonia/images/Viral Pneumonia-7.png": {
                "label": "Viral Pneumonia",
                "mask": "COVID-19_Radiography_Dataset/Viral Pneumonia/masks/Viral Pneumonia-7.png",
            },
            "COVID-19_Radiography_Dataset/Normal/images/Normal-1.png": {"label": "Normal"},
            "COVID-19_Radiography_Dataset/Lung_Opacity/images/Lung_Opacity-1.png": {"label": "Lung_Opacity"},
        },
    ),
    "covidgr": Case(
        "COVIDGR/raw/N/abc.jpg\nCOVIDGR/raw/P/def.jpg",
        {"COVIDGR/raw/N/abc.jpg": {"label": "negative"}, "COVIDGR/raw/P/def.jpg": {"label": "positive"}},
    ),
    "covid19-pa": Case(
        """
        COVID19_Pneumonia_Normal_Chest_Xray_PA_Dataset/covid/COVID-19 (89).jpg
        COVID19_Pneumonia_Normal_Chest_Xray_PA_Dataset/normal/normal (1).png
        COVID19_Pneumonia_Normal_Chest_Xray_PA_Dataset/pneumonia/pneumonia (1).jpeg
        """,
        {
            "COVID19_Pneumonia_Normal_Chest_Xray_PA_Dataset/covid/COVID-19 (89).jpg": {"label": "covid"},
            "COVID19_Pneumonia_Normal_Chest_Xray_PA_Dataset/normal/normal (1).png": {"label": "normal"},
            "COVID19_Pneumonia_Normal_Chest_Xray_PA_Dataset/pneumonia/pneumonia (1).jpeg": {"label": "pneumonia"},
        },
    ),
    "tianchi-chest-ct": Case(
        """
        Data/train/adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib/000000 (6).png
        Data/valid/normal/2 - Copy - Copy.png
        Data/train/squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa/000005.png
        Data/test/adenocarcinoma/000108 (3).png
        Data/test/large.cell.carcinoma/000113.jpg
        """,
        {
            "Data/train/adenocarcinoma_left.lower.lobe_T2_N0_M0_Ib/000000 (6).png": {
                "split": "train",
                "label": "adenocarcinoma",
            },
            "Data/valid/normal/2 - Copy - Copy.png": {"split": "val", "label": "normal"},
            "Data/train/squamous.cell.carcinoma_left.hilum_T1_N2_M0_IIIa/000005.png": {
                "split": "train",
                "label": "squamous.cell.carcinoma",
            },
            "Data/test/adenocarcinoma/000108 (3).png": {"split": "test", "label": "adenocarcinoma"},
            "Data/test/large.cell.carcinoma/000113.jpg": {"split": "test", "label": "large.cell.carcinoma"},
        },
    ),
    "lung-pet-ct-dx": Case(
        "",
        {
            "Lung-PET-CT-Dx/Lung_Dx-A0001/study/ct/1-001.dcm": {"group": 1},
            "Lung-PET-CT-Dx/Lung_Dx-A0001/study/ct/1-002.dcm": {
                "group": 1,
                "boxes": [box("adenocarcinoma", 5, 6, 50, 60)],
            },
            "Lung-PET-CT-Dx/Lung_Dx-B0002/study/ct/1-001.dcm": {
                "group": 2,
                # reaches out of the 512 x 512 image: clipped
                "boxes": [box("small cell carcinoma", 500, 10, 512, 20)],
            },
        },
        {
            **series("Lung-PET-CT-Dx/Lung_Dx-A0001/study/ct", 2, "CT", "1.9.1"),
            **series("Lung-PET-CT-Dx/Lung_Dx-A0001/study/pet", 2, "PT", "1.9.2"),
            **series("Lung-PET-CT-Dx/Lung_Dx-B0002/study/ct", 1, "CT", "1.9.3"),
            "Lung-PET-CT-Dx-Annotations-XML-Files-rev12222020/Annotation/A0001/1.9.1.2.xml": voc(
                512, 512, ("A", 5, 6, 50, 60), ("A", 7, 7, 7, 9)
            ),
            "Lung-PET-CT-Dx-Annotations-XML-Files-rev12222020/Annotation/B0002/1.9.3.1.xml": voc(
                512, 512, ("B", 500, 10, 530, 20)
            ),
            "Lung-PET-CT-Dx-Annotations-XML-Files-rev12222020/Annotation/B0002/7.7.7.xml": voc(
                512, 512, ("B", 1, 1, 2, 2)
            ),
        },
        problems=["belong to no image"],
    ),
    "pneumoniamnist": Case(
        "",
        {
            "pneumoniamnist.npz#train_images[0]": {"split": "train", "label": "normal"},
            "pneumoniamnist.npz#train_images[1]": {"split": "train", "label": "pneumonia"},
            "pneumoniamnist.npz#val_images[0]": {"split": "val", "label": "pneumonia"},
            "pneumoniamnist.npz#test_images[0]": {"split": "test", "label": "normal"},
        },
        {"pneumoniamnist.npz": medmnist(28, 2, (2, 1, 1), [[0, 1], [1], [0]])},
    ),
    "lung-seg-inhouse": Case(
        "images/p1/one.png\nlabels/p1/one.png\nimages/p2/two.png\nlabels/p2/two.bmp",
        {"images/p1/one.png": {"mask": "labels/p1/one.png"}, "images/p2/two.png": {"mask": "labels/p2/two.bmp"}},
    ),
    "heart-seg-inhouse": Case("images/one.png\nlabels/one.png", {"images/one.png": {"mask": "labels/one.png"}}),
    "pneumonia-infection-seg": Case(
        # one name in two folders: the mask whose folder is nearest belongs to it
        "a/images/one.png\na/labels/one.png\nb/images/one.png\nb/labels/one.png",
        {"a/images/one.png": {"mask": "a/labels/one.png"}, "b/images/one.png": {"mask": "b/labels/one.png"}},
    ),
}
